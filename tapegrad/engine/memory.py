"""The allocator: blocks by size class, reused when freed, and storages that own them.

Small blocks (up to 1 KiB, in steps of 16 bytes) are carved from slabs. Larger ones come from the C library, aligned to a
cache line, in four steps an octave; freed ones are kept for reuse up to `cache_limit`, because fresh pages cost about
0.25 ms a MiB to touch the first time.
"""

from tapegrad.engine.structs import (
    FREE_BLOCKS_OFFSET,
    STORAGE_SIZE,
    free,
    i64,
    internal_words,
    malloc,
    py_decref,
    realloc,
    state_at,
    storage_of,
)

SMALL = 1024
SLAB = 1 << 18
ALIGN = 64
LARGEST = 1 << 47


@internal_words
def size_class(nbytes):
    """Index of the smallest size class that holds `nbytes`, and its size."""
    if nbytes <= SMALL:
        k = max((nbytes + 15) >> 4, 1)
        return k, k << 4
    octave = 10
    while (nbytes - 1) >> (octave + 1):
        octave += 1
    step = 1 << (octave - 2)
    quarters = (nbytes + step - 1) // step  # 5 to 8
    return 64 + (octave - 10) * 4 + quarters - 4, quarters * step


@internal_words
def allocate(S, nbytes):
    """Address of a block of at least `nbytes`, 0 if there is no memory."""
    if nbytes < 0 or nbytes > LARGEST:
        return 0
    s = state_at(S)
    k, size = size_class(nbytes)
    s.used_bytes += size
    if s.used_bytes > s.peak_bytes:
        s.peak_bytes = s.used_bytes
    heads = i64(S + FREE_BLOCKS_OFFSET)
    block = heads[k]
    if block:
        heads[k] = i64(block)[0]
        if size > SMALL:
            s.cached_bytes -= size
        return block
    if size <= SMALL:
        if s.slab_left < size:
            slab = malloc(SLAB + ALIGN)
            if slab == 0:
                s.used_bytes -= size
                return 0
            s.slab = (slab + ALIGN - 1) & -ALIGN
            s.slab_left = SLAB
        block = s.slab
        s.slab += size
        s.slab_left -= size
        return block
    raw = malloc(size + 2 * ALIGN)
    if raw == 0:
        s.used_bytes -= size
        return 0
    block = (raw + 2 * ALIGN - 1) & -ALIGN
    i64(block - 8)[0] = raw
    return block


@internal_words
def deallocate(S, block, nbytes):
    """Give back a block that `allocate` returned for `nbytes`."""
    s = state_at(S)
    k, size = size_class(nbytes)
    s.used_bytes -= size
    if size > SMALL:
        if s.cached_bytes + size > s.cache_limit:
            free(i64(block - 8)[0])
            return
        s.cached_bytes += size
    heads = i64(S + FREE_BLOCKS_OFFSET)
    i64(block)[0] = heads[k]
    heads[k] = block


@internal_words
def new_storage(S, nbytes):
    """Id of a storage of `nbytes` with memory of its own, 0 if there is none."""
    base = allocate(S, nbytes)
    if base == 0:
        return 0
    return adopt_storage(S, base, nbytes, 0, 0)


@internal_words
def adopt_storage(S, base, nbytes, owner, root):
    """Id of a storage over given memory: our block, a foreign owner's, or another storage's."""
    s = state_at(S)
    k = s.free_storage
    if k:
        s.free_storage = storage_of(S, k).base
    else:
        k = s.storage_count
        if k == s.storage_capacity:
            table = realloc(s.storages, 2 * s.storage_capacity * STORAGE_SIZE)
            if table == 0:
                return 0
            s.storages = table
            s.storage_capacity *= 2
        s.storage_count = k + 1
    s.live_storages += 1
    storage = storage_of(S, k)
    storage.base = base
    storage.bytes = nbytes
    storage.owner = owner
    storage.refs = 1
    storage.version = 0
    storage.graph_version = 0
    storage.root = root
    storage.number = s.storages_made
    s.storages_made += 1
    return k


@internal_words
def release_storage(S, k):
    """Drop one reference; the last one frees the memory or queues its owner in `orphans`."""
    s = state_at(S)
    while k:
        storage = storage_of(S, k)
        storage.refs -= 1
        if storage.refs:
            return
        root = storage.root
        if storage.owner:
            node = allocate(S, 16)
            i64(node)[0] = s.orphans
            i64(node)[1] = storage.owner
            s.orphans = node
        elif root == 0:
            deallocate(S, storage.base, storage.bytes)
        storage.base = s.free_storage
        s.free_storage = k
        s.live_storages -= 1
        k = root


@internal_words
def drop_orphans(S):
    """Release queued owners one by one: a finaliser may come back into the engine."""
    s = state_at(S)
    while s.orphans:
        node = s.orphans
        owner = i64(node)[1]
        s.orphans = i64(node)[0]
        deallocate(S, node, 16)
        py_decref(owner)
