/* router_testing: a model directory whose tokens are single bytes, for tests of router/.
 *
 * Token 0 is <s>, 1 is </s> (the model's end token), 2 + b is the byte b; then a few longer
 * ones. There are no merges, so a text's tokens are its bytes. */
#ifndef BATON_TESTS_UNIT_ROUTER_ROUTER_TESTING_H
#define BATON_TESTS_UNIT_ROUTER_ROUTER_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdint.h>

#include "model/tokenizer/tokenizer.h"

#define TOKEN_BOS 0u
#define TOKEN_EOS 1u
#define TOKEN_BYTE(b) (2u + (uint8_t)(b))
#define TOKEN_STO 258u  /* "sto" */
#define TOKEN_P 259u    /* "p!" */
#define TOKEN_SNOW 260u /* U+2603, three bytes */
#define TOKEN_LONG 261u /* 200 times "x" */
#define TESTING_VOCAB 262u
#define TESTING_CONTEXT 4096u

/* tokenizer.json; Returns owned, free() it. */
char *testing_tokenizer_json(size_t *ret_len);
struct tokenizer *testing_tokenizer(void);

/* A fresh directory with config.json, generation_config.json and tokenizer.json. */
void testing_model_dir(char *ret_path, size_t capacity);
void testing_model_dir_remove(const char *path);

#endif
