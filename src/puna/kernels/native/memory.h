// Memory of the system: large pages, files as memory, and files' memory replaced by memory of one's own. Linux.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include "simd.h"

constexpr int64_t PAGE = 4096, LARGE_PAGE = 1 << 21;

// Asks for large pages in memory that is not used yet: with small ones a core reads less of it in a second.
inline void use_large_pages(uint8_t* memory, int64_t n_bytes) {
    uint8_t* first = (uint8_t*)padded((int64_t)memory, PAGE);
    const int64_t n = (memory + n_bytes - first) / PAGE * PAGE;
#ifdef MADV_HUGEPAGE
    if (n > 0) madvise(first, n, MADV_HUGEPAGE);
#endif
}

// Address space from a border of large pages on, without memory behind it; nullptr where there is none.
inline uint8_t* reserve(int64_t n_bytes) {
    const int64_t whole = padded(n_bytes, PAGE) + LARGE_PAGE;
    void* found = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    uint8_t* first = (uint8_t*)padded((int64_t)found, LARGE_PAGE);
    uint8_t* end = first + padded(n_bytes, PAGE);
    if (first > found) munmap(found, first - (uint8_t*)found);
    if ((uint8_t*)found + whole > end) munmap(end, (uint8_t*)found + whole - end);
    return first;
}

inline void unmap(uint8_t* memory, int64_t n_bytes) { munmap(memory, padded(n_bytes, PAGE)); }

// A part of a file as memory, from a border of pages of the file on; nullptr where that cannot be.
inline uint8_t* map_file(int file, int64_t offset, int64_t n_bytes) {
    uint8_t* at = reserve(n_bytes);
    if (!at) return nullptr;
    const void* mapped = mmap(at, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, offset);
    if (mapped == at) return at;
    unmap(at, n_bytes);
    return nullptr;
}

// Reads a part of a file into memory of its own, in large pages, and puts that in the place of the mapping of the same
// part. `at` is on a border of large pages. Others may read it all the while: the content never changes, and the system
// changes the pages behind it at once. False where that cannot be: then everything is as before.
inline bool settle(uint8_t* at, int64_t n_bytes, int file, int64_t offset) {
    uint8_t* own = reserve(n_bytes);
    if (!own) return false;
    const int64_t whole = padded(n_bytes, PAGE);
    bool is_done = mprotect(own, whole, PROT_READ | PROT_WRITE) == 0;
    use_large_pages(own, whole);
    for (int64_t done = 0; is_done && done < n_bytes;) {
        const int64_t n = pread(file, own + done, n_bytes - done, offset + done);
        is_done = n > 0;
        done += n;
    }
    is_done = is_done && mremap(own, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at;
    if (!is_done) unmap(own, n_bytes);
    return is_done;
}
