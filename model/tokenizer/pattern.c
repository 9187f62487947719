#include "model/tokenizer/pattern.h"

status_t pattern_read(const json_t *json, struct pattern_json *ret_pattern, struct diag *diag)
{
    *ret_pattern = (struct pattern_json){0};
    TRY(tok_json_text(json, "String", &ret_pattern->text, diag));
    ret_pattern->literal = ret_pattern->text.data != NULL;
    if (!ret_pattern->literal) { TRY(tok_json_text(json, "Regex", &ret_pattern->text, diag)); }
    if (ret_pattern->text.data) { return STATUS_OK; }
    diag_set(diag, "field \"pattern\" must be {\"String\": ..} or {\"Regex\": ..}");
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}
