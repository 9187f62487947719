/* shared_data: where the stored reference data is, for tests that can use it. */
#ifndef BATON_TESTS_UNIT_TOKENIZER_SHARED_DATA_H
#define BATON_TESTS_UNIT_TOKENIZER_SHARED_DATA_H

#include <stdbool.h>
#include <stddef.h>

/* Writes the folder that holds MANIFEST.md: $BATON_SHARED_DATA, else shared/data in a folder
 * above the repository. False where there is none. */
bool shared_data_find(char *ret_path, size_t size);

#endif
