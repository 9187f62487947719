/* ucx_library: finds a UCX that tests can use. Only for tests.
 * Thread:  any one. */
#ifndef BATON_TESTS_CONFORMANCE_UCX_LIBRARY_H
#define BATON_TESTS_CONFORMANCE_UCX_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

/* The library's path, by BATON_UCX_LIBRARY, beside the Python of BATON_PYTHON (the wheel of
 * tests/python/requirements.txt) or by the loader's search, and of a version that the cable takes.
 * False: none; ret_text says why. */
bool ucx_library_find(char *ret_path, size_t path_size, char *ret_text, size_t text_size);

#endif
