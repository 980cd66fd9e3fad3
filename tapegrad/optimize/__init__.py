"""SciPy's optimisers over functions of tensors, with exact derivatives from the tape.

Importing this module imports `scipy.optimize`; ``import tapegrad`` does not, until ``tapegrad.optimize`` is used.
"""

from tapegrad.optimize._curve_fit import curve_fit
from tapegrad.optimize._equations import least_squares, root
from tapegrad.optimize._global import basinhopping, dual_annealing
from tapegrad.optimize._minimize import minimize

__all__ = ["basinhopping", "curve_fit", "dual_annealing", "least_squares", "minimize", "root"]
