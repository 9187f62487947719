/* answer_fuzz: a router's stream of GenerateResponse from bytes, as JSON and as text.
 *
 * A message is a length of two bytes and as much of the rest. The call is replaced by
 * api_call_next() below; what is read must come back in the counts and in the JSON. */
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "client/answer.h"

struct api_call {
    const uint8_t *at, *end;
    uint64_t now_ns;
};

status_t api_call_next(struct api_call *call, const ProtobufCMessageDescriptor *descriptor,
                       ProtobufCMessage **ret_message, uint64_t *ret_at_ns, struct diag *diag)
{
    *ret_message = NULL;
    *ret_at_ns = call->now_ns++;
    if (call->end - call->at < 2) { return STATUS_OK; }
    size_t left = (size_t)(call->end - call->at) - 2;
    size_t len = (size_t)call->at[0] | (size_t)call->at[1] << 8;
    if (len > left) { len = left; }
    *ret_message = protobuf_c_message_unpack(descriptor, NULL, len, call->at + 2);
    call->at += 2 + len;
    if (*ret_message) { return STATUS_OK; }
    diag_set(diag, "not a message");
    return STATUS(ST_DATA_LOSS, SCOPE_PEER);
}

static void read_answer(const uint8_t *data, size_t size, bool wants_json, FILE *out)
{
    struct api_call call = {.at = data, .end = data + size, .now_ns = 1};
    struct answer answer = {.wants_json = wants_json};
    struct diag diag = {{0}};
    if (failed(answer_read(&answer, &call, &diag))) { CHECK(diag.text[0] != '\0'); }
    rewind(out);
    answer_print_route(&answer, out);
    if (wants_json) {
        json_t *json = answer_json(&answer);
        CHECK(json_is_object(json));
        CHECK(json_array_size(json_object_get(json, "sequences")) == answer.sequence_count);
        for (uint32_t i = 0; i < answer.sequence_count; i++) {
            CHECK(json_array_size(answer.sequences[i].token_ids) == answer.sequences[i].token_count);
        }
        char *text = json_dumps(json, JSON_COMPACT);
        CHECK(text != NULL);
        free(text);
        json_decref(json);
    }
    answer_fini(&answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *out;
    if (!out) { out = fopen("/dev/null", "w"); }
    CHECK(out != NULL);
    read_answer(data, size, true, out);
    read_answer(data, size, false, out);
    return 0;
}
