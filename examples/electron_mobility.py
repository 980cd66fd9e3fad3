"""A published model fitted to published measurements, and compared with the parameters that NIST certifies.

The mobility of electrons in silicon (R. Thurber, National Bureau of Standards, 1979) against the logarithm of their density, by a
ratio of two cubic polynomials. Data, starting values and certified results are the set "Thurber" of the NIST Statistical Reference
Datasets, of higher difficulty: https://www.itl.nist.gov/div898/strd/nls/data/thurber.shtml

Run it with ``python examples/electron_mobility.py``.
"""

import numpy as np

import tapegrad as tg

MOBILITY = tg.tensor(
    [80.574, 84.248, 87.264, 87.195, 89.076, 89.608, 89.868, 90.101, 92.405, 95.854, 100.696, 101.060, 401.672]
    + [390.724, 567.534, 635.316, 733.054, 759.087, 894.206, 990.785, 1090.109, 1080.914, 1122.643, 1178.351]
    + [1260.531, 1273.514, 1288.339, 1327.543, 1353.863, 1414.509, 1425.208, 1421.384, 1442.962, 1464.350]
    + [1468.705, 1447.894, 1457.628],
    dtype=tg.float64,
)
LOG_DENSITY = tg.tensor(
    [-3.067, -2.981, -2.921, -2.912, -2.840, -2.797, -2.702, -2.699, -2.633, -2.481, -2.363, -2.322, -1.501]
    + [-1.460, -1.274, -1.212, -1.100, -1.046, -0.915, -0.714, -0.566, -0.545, -0.400, -0.309, -0.109, -0.103]
    + [0.010, 0.119, 0.377, 0.790, 0.963, 1.006, 1.115, 1.572, 1.841, 2.047, 2.200],
    dtype=tg.float64,
)
# b1 to b4 above the line, b5 to b7 below it
FAR_START = {"above": np.array([1000.0, 1000, 400, 40]), "below": np.array([0.7, 0.3, 0.03])}
NEAR_START = {"above": np.array([1300.0, 1500, 500, 75]), "below": np.array([1.0, 0.4, 0.05])}
CERTIFIED = np.array(
    [1288.1396800, 1491.0792535, 583.23836877, 75.416644291, 0.96629502864, 0.39797285797, 0.049727297349]
)
CERTIFIED_ERRORS = np.array(
    [4.6647963344, 39.571156086, 28.698696102, 5.5675370270, 0.031333340687, 0.014984928198, 0.0065842344623]
)
CERTIFIED_SQUARES = 5642.7082397


def model(b: dict[str, tg.Tensor], x: tg.Tensor) -> tg.Tensor:
    """A ratio of cubic polynomials; the constant term below the line is 1."""
    powers = tg.stack([x**0, x, x**2, x**3])
    return (b["above"] @ powers) / (1 + b["below"] @ powers[1:])


def residuals(b: dict[str, tg.Tensor]) -> tg.Tensor:
    """What the model leaves of the measurements."""
    return MOBILITY - model(b, LOG_DENSITY)


def joined(b: dict[str, np.ndarray]) -> np.ndarray:
    """b1 to b7."""
    return np.concatenate([b["above"], b["below"]])


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """How many digits agree in the worst number."""
    return float(-np.log10(np.max(abs(found / certified - 1))))


def main() -> None:
    """Fit with the exact Jacobian, then again with the exact Hessian."""
    fit = tg.optimize.least_squares(residuals, FAR_START, method="lm", xtol=1e-14, ftol=1e-14)
    freedom = len(fit.fun) - len(CERTIFIED)
    covariance = np.linalg.inv(fit.jac.T @ fit.jac) * 2 * fit.cost / freedom
    errors = np.sqrt(np.diag(covariance))
    print(f"least squares: {fit.nfev} evaluations, {fit.njev} Jacobians, sum of squares {2 * fit.cost:.7f}")
    for k, (value, error, certified) in enumerate(zip(joined(fit.x), errors, CERTIFIED, strict=True)):
        print(f"  b{k + 1} = {value:15.10f} ± {error:.5f}, certified {certified:15.10f}")

    newton = tg.optimize.minimize(lambda b: (residuals(b) ** 2).sum(), NEAR_START, method="trust-exact")
    print(f"Newton's method: {newton.nfev} evaluations, {newton.nhev} Hessians, sum of squares {newton.fun:.7f}")

    agreement = {
        "parameters": digits(joined(fit.x), CERTIFIED),
        "standard errors": digits(errors, CERTIFIED_ERRORS),
        "sum of squares": digits(np.array([2 * fit.cost]), np.array([CERTIFIED_SQUARES])),
        "Newton's parameters": digits(joined(newton.x), CERTIFIED),
    }
    print(", ".join(f"{what}: {count:.1f} digits" for what, count in agreement.items()))
    if min(agreement.values()) < 6:
        raise SystemExit(f"the fit is not the certified one: {agreement}")


if __name__ == "__main__":
    main()
