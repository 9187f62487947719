/* chat_families: the well-known prompt formats, as templates in our own words.
 * Each gives the same prompt as the template that its models ship with; tests/golden holds the
 * proof. Content is joined by +, which refuses null and lists of parts; ~ would print them. */
#include <string.h>

#include "model/chat_template/chat_template.h"

/* Roles as they come, each turn in its pair of marks. */
static const char chatml[] =
    "{%- for m in messages %}\n"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}";

/* Llama 2 chat: the system text rides in the first question. */
static const char llama2[] =
    "{%- set preface = '' %}\n"
    "{%- set turns = messages %}\n"
    "{%- if messages and messages[0].role == 'system' %}\n"
    "{%- set preface = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}\n"
    "{%- set turns = messages[1:] %}\n"
    "{%- endif %}\n"
    "{%- for m in turns %}\n"
    "{%- if (m.role == 'user') != loop.index is odd %}\n"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\n"
    "{%- endif %}\n"
    "{%- set text = preface + m.content if loop.first else m.content %}\n"
    "{%- if m.role == 'user' %}{{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}\n"
    "{%- elif m.role == 'assistant' %}{{- ' ' + text.strip() + ' ' + eos_token }}\n"
    "{%- endif %}\n"
    "{%- endfor %}";

static const char llama3[] =
    "{{- bos_token }}\n"
    "{%- for m in messages %}\n"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/* Mistral 7B Instruct: no system role. */
static const char mistral[] =
    "{{- bos_token }}\n"
    "{%- for m in messages %}\n"
    "{%- if (m.role == 'user') != loop.index is odd %}\n"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\n"
    "{%- endif %}\n"
    "{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}\n"
    "{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}\n"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}\n"
    "{%- endif %}\n"
    "{%- endfor %}";

static const char zephyr[] =
    "{%- for m in messages %}\n"
    "{%- if m.role in ['system', 'user', 'assistant'] %}{{- '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endif %}\n"
    "{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}\n"
    "{%- endfor %}";

/* Qwen2.5 Instruct: ChatML with a system text of its own and tool calls. */
static const char qwen[] =
    "{%- set has_system = messages and messages[0].role == 'system' %}\n"
    "{%- set system = messages[0].content if has_system else 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}\n"
    "{{- '<|im_start|>system\\n' + system }}\n"
    "{%- if tools %}\n"
    "{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}\n"
    "{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}\n"
    "{%- for t in tools %}{{- '\\n' + t | tojson }}{% endfor %}\n"
    "{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' }}\n"
    "{{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}\n"
    "{{- '{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call>' }}\n"
    "{%- endif %}\n"
    "{{- '<|im_end|>\\n' }}\n"
    "{%- for m in messages %}\n"
    "{%- if m.role == 'tool' %}\n"
    "{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}\n"
    "{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}\n"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}\n"
    "{%- elif m.role == 'assistant' and m.tool_calls %}\n"
    "{{- '<|im_start|>assistant' + ('\\n' + m.content if m.content else '') }}\n"
    "{%- for call in m.tool_calls %}\n"
    "{%- set f = call.function if call.function is defined else call %}\n"
    "{{- '\\n<tool_call>\\n{\"name\": \"' + f.name + '\", \"arguments\": ' + f.arguments | tojson + '}\\n</tool_call>' }}\n"
    "{%- endfor %}\n"
    "{{- '<|im_end|>\\n' }}\n"
    "{%- elif m.role in ['user', 'assistant'] or (m.role == 'system' and not loop.first) %}\n"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}";

static const struct {
    const char *name, *source;
} families[] = {
    {"chatml", chatml}, {"llama2", llama2}, {"llama3", llama3}, {"mistral", mistral}, {"zephyr", zephyr}, {"qwen", qwen},
};

const char *chat_template_builtin_source(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(families[i].name, name) == 0) { return families[i].source; }
    }
    return NULL;
}
