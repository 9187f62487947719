/* messages_fuzz: any JSON as messages, through every built-in family. */
#include <stdint.h>
#include <stdlib.h>

#include "model/chat_template/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"chatml", "llama2", "llama3", "mistral", "zephyr", "qwen"};
    static struct chat_template *families[6];
    for (int i = 0; i < 6 && !families[i]; i++) {
        if (failed(chat_template_builtin(names[i], &families[i], NULL))) { abort(); }
    }
    json_t *messages = json_loadb((const char *)data, size, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
    for (int i = 0; messages && i < 6; i++) {
        struct chat_options options = {.add_generation_prompt = true, .bos_token = "<s>", .eos_token = "</s>", .tools = i % 2 ? messages : NULL};
        struct diag diag;
        char *text = NULL;
        size_t len = 0;
        if (!failed(chat_template_render(families[i], messages, &options, &text, &len, &diag))) { free(text); }
    }
    json_decref(messages);
    return 0;
}
