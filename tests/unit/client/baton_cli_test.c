/* Claims on the `baton` command line: exit codes, where texts go, and what is said of mistakes.
 * Runs the binary; no router is needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char output[1 << 16];

/* Runs `client/baton arguments` and reads what it prints; redirection chooses what that is. */
static int baton(const char *arguments, const char *redirection)
{
    char command[1024];
    snprintf(command, sizeof command, "client/baton %s %s </dev/null", arguments, redirection);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t len = fread(output, 1, sizeof output - 1, pipe);
    output[len] = '\0';
    int how = pclose(pipe);
    assert_true(WIFEXITED(how));
    return WEXITSTATUS(how);
}

#define STDOUT "2>/dev/null"
#define STDERR "2>&1 >/dev/null"

static void says(const char *what)
{
    if (!strstr(output, what)) { fail_msg("\"%s\" is not in: %s", what, output); }
}

/* Mistakes in what was typed end with 2 and a sentence on standard error; standard output stays
 * empty, for whoever pipes it. */
static void mistakes_end_with_2(void **state)
{
    (void)state;
    static const struct { const char *arguments, *reason; } cases[] = {
        {"", "usage: baton COMMAND"},
        {"fly", "\"fly\" is not a command"},
        {"generate --promt=x", "--promt: no such flag, did you mean --prompt"},
        {"generate", "exactly one of --prompt, --prompt-file and --tokens"},
        {"generate --prompt=a --tokens=1", "exactly one of"},
        {"generate --prompt", "--prompt: needs a value"},
        {"generate --tokens=1,x", "entry 2 is not a token id"},
        {"generate --prompt=x --temperature=hot", "--temperature=hot: takes a number"},
        {"generate --prompt=x --max-tokens=-1", "--max-tokens=-1: takes a whole number"},
        {"generate --prompt=x --timeout=5", "--timeout=5: takes a duration"},
        {"generate stray", "\"stray\": not a flag"},
        {"tokenize --model=models/baton-tiny", "--"},
        {"bench --concurrency=x", "--concurrency=x"},
        {"up --prefill=x", "--prefill=x"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int rc = baton(cases[i].arguments, STDERR);
        if (rc != 2) { fail_msg("baton %s: exit %d: %s", cases[i].arguments, rc, output); }
        says(cases[i].reason);
        baton(cases[i].arguments, STDOUT);
        assert_string_equal(output, "");
    }
}

/* --help of everything goes to standard output and succeeds. */
static void help_succeeds(void **state)
{
    (void)state;
    static const char *const words[] = {"up", "generate", "chat", "status", "kv", "tokenize", "bench"};
    assert_int_equal(baton("--help", STDOUT), 0);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) { says(words[i]); }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char arguments[64], usage[64];
        snprintf(arguments, sizeof arguments, "%s --help", words[i]);
        snprintf(usage, sizeof usage, "usage: baton %s", words[i]);
        assert_int_equal(baton(arguments, STDOUT), 0);
        says(usage);
        says("\n  --");
    }
    baton("generate --help", STDOUT);
    static const char *const sampling[] = {"--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--seed",
                                           "--stop", "--ignore-eos", "--logprobs", "--n", "--json", "--router"};
    for (size_t i = 0; i < sizeof sampling / sizeof sampling[0]; i++) { says(sampling[i]); }
}

/* Without a router the commands that need one fail with 1, at once, and say whom they asked. */
static void without_a_router_it_says_so(void **state)
{
    (void)state;
    static const char *const commands[] = {"generate --router=127.0.0.1:1 --prompt=x", "status --router=127.0.0.1:1"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(baton(commands[i], STDERR), 1);
        says("UNAVAILABLE");
        says("127.0.0.1:1");
    }
    assert_int_equal(baton("generate --prompt-file=/no/such/file", STDERR), 1);
    says("/no/such/file");
}

/* Ids that a directory's tokenizer makes of a text decode to that text. */
static void tokenize_round_trips(void **state)
{
    (void)state;
    assert_int_equal(baton("tokenize --model=models/baton-tiny --text='The runner passes the baton.' --no-special-tokens --json", STDOUT), 0);
    json_t *object = json_loads(output, 0, NULL);
    assert_non_null(object);
    json_t *ids = json_object_get(object, "token_ids");
    if (!ids) { ids = json_object_get(object, "ids"); }
    assert_true(json_array_size(ids) > 2);
    char arguments[1024] = "tokenize --model=models/baton-tiny --tokens=";
    for (size_t i = 0; i < json_array_size(ids); i++) {
        size_t len = strlen(arguments);
        snprintf(arguments + len, sizeof arguments - len, "%s%d", i ? "," : "", (int)json_integer_value(json_array_get(ids, i)));
    }
    json_decref(object);
    assert_int_equal(baton(arguments, STDOUT), 0);
    says("The runner passes the baton.");
    assert_int_equal(baton("tokenize --model=/no/such/model --text=x", STDERR), 1);
    says("/no/such/model");
}

/* Programs in place of the real ones, which note their arguments; the router's ends when all have. */
static void make_programs(char folder[64])
{
    static const char *const names[] = {"router", "prefill_node", "decode_node"};
    strcpy(folder, "/tmp/baton-cli-XXXXXX");
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < 3; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fprintf(file, "#!/bin/sh\necho \"%s $* .\" >> %s/seen\n", names[i], folder);
        fprintf(file, i == 0 ? "until [ $(wc -l < %s/seen) -ge 3 ]; do sleep 0.02; done\nexit 3\n" : "exec sleep 60 # %s\n", folder);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(chmod(path, 0755), 0);
    }
}

static void remove_programs(const char *folder)
{
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

/* Flags for both kinds of nodes come before those for one kind; the router gets its own. */
static void up_hands_flags_on(void **state)
{
    (void)state;
    char folder[64], arguments[512], path[96];
    make_programs(folder);
    snprintf(arguments, sizeof arguments,
             "up --model=m --listen=127.0.0.1:0 --bin-dir=%s --node-flags='--weights=int8  --kv-dtype bf16' "
             "--decode-flags=--preempt=swap --router-flags='--decode=127.0.0.1:1'", folder);
    assert_int_equal(baton(arguments, STDERR), 1); /* the router ended */
    says("router could not start");
    snprintf(path, sizeof path, "%s/seen", folder);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char line[4096];
    uint32_t lines = 0;
    while (fgets(line, sizeof line, file)) {
        bool is_decode = strncmp(line, "decode_node ", 12) == 0, is_router = strncmp(line, "router ", 7) == 0;
        const char *end = is_router ? " --decode=127.0.0.1:1 .\n"
                          : is_decode ? " --weights=int8 --kv-dtype bf16 --preempt=swap .\n" : " --weights=int8 --kv-dtype bf16 .\n";
        size_t len = strlen(line), end_len = strlen(end);
        if (len < end_len || strcmp(line + len - end_len, end) != 0) { fail_msg("not at its end %s: %s", end, line); }
        lines++;
    }
    fclose(file);
    assert_int_equal(lines, 3);
    remove_programs(folder);
}

/* A flag that `baton up` sets itself cannot be handed on: said at once, with the flag that sets it. */
static void up_names_its_own_flag(void **state)
{
    (void)state;
    static const struct { const char *arguments, *reason; } cases[] = {
        {"--node-flags=--isa=avx2", "--node-flags: --isa is set by `baton up`: give --isa to `baton up` itself"},
        {"--prefill-flags='--weights=int8 --kv-memory 1GiB'", "--prefill-flags: --kv-memory is set by `baton up`"},
        {"--decode-flags=--threads=1", "--decode-flags: --threads is set by"},
        {"--decode-flags=--name=x", "--decode-flags: --name is chosen by `baton up` for each process; leave it out"},
        {"--decode-flags=--listen=127.0.0.1:1", "--decode-flags: --listen is chosen by"},
        {"--router-flags=--listen=127.0.0.1:1", "--router-flags: --listen is set by"},
        {"--chat-template=chatml --router-flags=--chat-template=llama3", "--router-flags: --chat-template is set by"},
    };
    char folder[64];
    make_programs(folder);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char arguments[512];
        snprintf(arguments, sizeof arguments, "up --model=m --listen=127.0.0.1:0 --bin-dir=%s %s", folder, cases[i].arguments);
        assert_int_equal(baton(arguments, STDERR), 2);
        says(cases[i].reason);
    }
    remove_programs(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_end_with_2),
        cmocka_unit_test(help_succeeds),
        cmocka_unit_test(without_a_router_it_says_so),
        cmocka_unit_test(tokenize_round_trips),
        cmocka_unit_test(up_hands_flags_on),
        cmocka_unit_test(up_names_its_own_flag),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
