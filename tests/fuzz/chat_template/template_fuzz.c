/* template_fuzz: any bytes as a template, rendered over one rich list of messages. */
#include <stdint.h>
#include <stdlib.h>

#include "model/chat_template/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *messages, *tools;
    if (!messages) {
        messages = json_loads("[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\" H\\u00e9llo \\ud83c\\udfc3\\n\"},"
                              "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
                              "\"arguments\":{\"a\":[1,2.5,true,null,\"x\"]}}}]},{\"role\":\"tool\",\"name\":\"f\",\"content\":[{\"type\":\"text\",\"text\":\"ok\"}]}]",
                              0, NULL);
        tools = json_loads("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"items\":{}}}}]", 0, NULL);
    }
    struct chat_template *chat = NULL;
    struct diag diag;
    char *text = NULL;
    size_t len = 0;
    if (failed(chat_template_compile((const char *)data, size, &chat, &diag))) { return 0; }
    struct chat_options options = {.add_generation_prompt = true, .bos_token = "<s>", .eos_token = "</s>", .tools = tools, .now_s = 1721995200};
    if (!failed(chat_template_render(chat, messages, &options, &text, &len, &diag))) {
        if (text[len] != '\0') { abort(); }
        free(text);
    }
    chat_template_destroy(chat);
    return 0;
}
