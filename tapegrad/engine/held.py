"""Telling the memory that a function makes from what was there before: all of that is held until the function is done."""

from tapegrad.engine.memory import release_storage
from tapegrad.engine.structs import internal_words, state_at, storage_of, u8


@internal_words
def hold_storages(S, marks, count):
    """Keep every storage among the first `count`, and mark it in the bytes at address `marks`."""
    held = u8(marks)
    for k in range(1, count):
        storage = storage_of(S, k)
        if storage.refs > 0:
            storage.refs += 1
            held[k] = 1


@internal_words
def let_go_storages(S, marks, count):
    """Let go of the marked storages. Returns 1 if foreign owners wait in `orphans`."""
    held = u8(marks)
    for k in range(1, count):
        if held[k]:
            release_storage(S, k)
    return 1 if state_at(S).orphans else 0
