"""One recorded kernel over many samples."""

from tapegrad.engine.memory import allocate, deallocate
from tapegrad.engine.structs import DTYPE_SLOTS, ROW_SIZE, buffer_of, call_kernel, i64, internal_words, row_at, state_at
from tapegrad.engine.tape import reserve_row


@internal_words
def run_lanes(S, op, out, a, b, c, batch, steps, attr):
    """Run an opcode's kernel once a sample, without recording.

    Args:
        S: the state.
        op: the opcode, whose kernel is loaded.
        out: buffer of the first sample's result.
        a, b, c: buffers of the first sample's operands, 0 where absent.
        batch: number of samples.
        steps: address of the bytes from one sample to the next, of the result, the three operands and the further ones.
        attr: attribute block of one sample.

    Returns:
        Whether there was memory.
    """
    s = state_at(S)
    step = i64(steps)
    extra = i64(attr)[1]
    items = abs(i64(attr)[2 + extra])
    merges = i64(attr)[2 + extra] < 0
    if not reserve_row(S):
        return False
    row = s.rows + s.row_count * ROW_SIZE
    r = row_at(row)
    r.op = op
    r.flags = 0
    r.attr = attr
    r.out = out
    r.in0 = a
    r.in1 = b
    r.in2 = c
    kernel = i64(s.forward)[op * DTYPE_SLOTS + buffer_of(S, a if a else out).dtype]
    if merges:
        s.scratch = allocate(S, items * 8)
        if s.scratch == 0:
            return False
    ids = (out, a, b, c)
    for sample in range(batch):
        call_kernel(kernel, S, row, 0, items)
        if merges:
            call_kernel(kernel, S, row, -1, items)
        direction = 1 if sample < batch - 1 else 1 - batch
        for k in range(4):
            if ids[k]:
                buffer_of(S, ids[k]).data += direction * step[k]
        for k in range(extra):
            buffer_of(S, i64(attr)[2 + k]).data += direction * step[4 + k]
    if merges:
        deallocate(S, s.scratch, items * 8)
    return True
