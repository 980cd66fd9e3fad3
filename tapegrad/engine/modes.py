"""The grad mode of each thread."""

from tapegrad.engine.structs import MODE_THREAD_OFFSET, MODE_VALUE_OFFSET, i64, internal_words, state_at, thread_id


@internal_words
def mode_of_thread(S):
    """The grad mode of the calling thread: 0, or NO_GRAD_MODE and INFERENCE_MODE bits."""
    s = state_at(S)
    if s.mode_count == 0:
        return 0
    me = thread_id()
    for k in range(s.mode_count):
        if i64(S + MODE_THREAD_OFFSET)[k] == me:
            return i64(S + MODE_VALUE_OFFSET)[k]
    return 0


@internal_words
def set_mode(S, value):
    """Set the grad mode of the calling thread; returns the mode before, -1 if too many threads differ from the default."""
    s = state_at(S)
    threads = i64(S + MODE_THREAD_OFFSET)
    values = i64(S + MODE_VALUE_OFFSET)
    me = thread_id()
    for k in range(s.mode_count):
        if threads[k] == me:
            before = values[k]
            if value == 0:
                s.mode_count -= 1
                threads[k] = threads[s.mode_count]
                values[k] = values[s.mode_count]
            else:
                values[k] = value
            return before
    if value:
        if s.mode_count == 64:
            return -1
        threads[s.mode_count] = me
        values[s.mode_count] = value
        s.mode_count += 1
    return 0
