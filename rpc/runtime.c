/* runtime: the rpc threads, one completion queue each; and what servers and channels share.
 * Thread: create and destroy by main; the rest any.
 * Memory: one block in create. */
#include "rpc/rpc_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/support/log.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#define THREADS_DEFAULT 2u
#define THREADS_MAX 64u
#define MESSAGE_BYTES_DEFAULT (4u << 20)
#define KEEPALIVE_TIME_MS_DEFAULT 2000u
#define KEEPALIVE_TIMEOUT_MS_DEFAULT 2000u
#define CORE_LOG_BYTES 400 /* its errors nest dozens of causes in one line */
#define SEND_MESSAGES_DEFAULT 1024u
#define SEND_BYTES_DEFAULT ((size_t)4 << 20)

static _Thread_local const struct rpc_runtime *current_runtime;

/* What the C core has to say goes into our log, in our form. Its errors are warnings here: each
 * that matters also ends a call or a start, and is told there. */
static void log_from_core(gpr_log_func_args *args)
{
    char text[CORE_LOG_BYTES];
    snprintf(text, sizeof text, "%s", args->message);
    for (char *at = text; *at != '\0'; at++) {
        if (*at == '"') {
            *at = '\'';
        }
    }
    LOGF(args->severity == GPR_LOG_SEVERITY_ERROR ? LOG_WARN : LOG_DEBUG, "grpc_core", "text=\"%s\"", text);
}

static void *loop_run(void *arg)
{
    struct rpc_loop *loop = arg;
    current_runtime = loop->runtime;
    for (;;) {
        grpc_event event = grpc_completion_queue_next(loop->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (event.type == GRPC_OP_COMPLETE) {
            struct rpc_tag *tag = event.tag;
            TAG_GOT_BACK(tag);
            tag->on_event(tag, event.success != 0);
        }
    }
}

static void loops_stop(struct rpc_runtime *runtime, uint32_t started)
{
    for (uint32_t i = 0; i < runtime->loop_count; i++) {
        grpc_completion_queue_shutdown(runtime->loops[i].cq);
    }
    for (uint32_t i = 0; i < runtime->loop_count; i++) {
        if (i < started) {
            pthread_join(runtime->loops[i].thread, NULL);
        } else {
            grpc_event event;
            do {
                event = grpc_completion_queue_next(runtime->loops[i].cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
            } while (event.type != GRPC_QUEUE_SHUTDOWN);
        }
        grpc_completion_queue_destroy(runtime->loops[i].cq);
    }
}

static void runtime_free(struct rpc_runtime *runtime)
{
    pthread_cond_destroy(&runtime->idle);
    pthread_mutex_destroy(&runtime->lock);
    free(runtime->loops);
    free(runtime);
}

status_t rpc_runtime_create(uint32_t thread_count, struct rpc_runtime **ret_runtime)
{
    if (thread_count == 0) {
        thread_count = THREADS_DEFAULT;
    }
    if (thread_count > THREADS_MAX) {
        thread_count = THREADS_MAX;
    }
    struct rpc_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    runtime->loops = calloc(thread_count, sizeof *runtime->loops);
    if (runtime->loops == NULL) {
        free(runtime);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pthread_mutex_init(&runtime->lock, NULL);
    pthread_cond_init(&runtime->idle, NULL);
    gpr_set_log_function(log_from_core);
    grpc_init();
    runtime->loop_count = thread_count;
    for (uint32_t i = 0; i < thread_count; i++) {
        runtime->loops[i].runtime = runtime;
        runtime->loops[i].cq = grpc_completion_queue_create_for_next(NULL);
    }
    for (uint32_t i = 0; i < thread_count; i++) {
        int err = pthread_create(&runtime->loops[i].thread, NULL, loop_run, &runtime->loops[i]);
        if (err != 0) {
            loops_stop(runtime, i);
            grpc_shutdown();
            runtime_free(runtime);
            return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, err);
        }
        char name[16];
        snprintf(name, sizeof name, "rpc-%u", i);
        pthread_setname_np(runtime->loops[i].thread, name);
    }
    *ret_runtime = runtime;
    return STATUS_OK;
}

void rpc_runtime_destroy(struct rpc_runtime *runtime)
{
    if (runtime == NULL) {
        return;
    }
    CHECK(!runtime_is_current(runtime));
    pthread_mutex_lock(&runtime->lock);
    while (runtime->user_count > 0) {
        pthread_cond_wait(&runtime->idle, &runtime->lock);
    }
    pthread_mutex_unlock(&runtime->lock);
    loops_stop(runtime, runtime->loop_count);
    grpc_shutdown();
    runtime_free(runtime);
}

void runtime_enter(struct rpc_runtime *runtime)
{
    pthread_mutex_lock(&runtime->lock);
    runtime->user_count++;
    pthread_mutex_unlock(&runtime->lock);
}

void runtime_leave(struct rpc_runtime *runtime)
{
    pthread_mutex_lock(&runtime->lock);
    CHECK(runtime->user_count > 0);
    runtime->user_count--;
    if (runtime->user_count == 0) {
        pthread_cond_broadcast(&runtime->idle);
    }
    pthread_mutex_unlock(&runtime->lock);
}

bool runtime_is_current(const struct rpc_runtime *runtime)
{
    return current_runtime == runtime;
}

void owner_init(struct rpc_owner *owner, struct rpc_runtime *runtime, void (*destroy)(struct rpc_owner *))
{
    owner->runtime = runtime;
    owner->destroy = destroy;
    owner->refs = 1;
    pthread_mutex_init(&owner->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&owner->changed, &attr);
    pthread_condattr_destroy(&attr);
    runtime_enter(runtime);
}

void owner_fini(struct rpc_owner *owner)
{
    pthread_cond_destroy(&owner->changed);
    pthread_mutex_destroy(&owner->lock);
    runtime_leave(owner->runtime);
}

void owner_unref(struct rpc_owner *owner)
{
    pthread_mutex_lock(&owner->lock);
    CHECK(owner->refs > 0);
    bool last = --owner->refs == 0;
    pthread_mutex_unlock(&owner->lock);
    if (last) {
        owner->destroy(owner);
    }
}

void owner_cancel_calls(struct rpc_owner *owner)
{
    /* The list cannot change under the lock, and a call in it holds the library's reference. */
    pthread_mutex_lock(&owner->lock);
    for (struct rpc_call *call = owner->calls; call != NULL; call = call->next) {
        rpc_call_cancel(call);
    }
    pthread_mutex_unlock(&owner->lock);
}

gpr_timespec deadline_to_gpr(uint64_t deadline_ns)
{
    if (deadline_ns == RPC_NO_DEADLINE || deadline_ns == 0) {
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    }
    uint64_t now = clock_now_ns();
    int64_t left = deadline_ns > now ? (int64_t)(deadline_ns - now) : 0;
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(left, GPR_TIMESPAN));
}

uint64_t deadline_from_gpr(gpr_timespec deadline)
{
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) {
        return RPC_NO_DEADLINE;
    }
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    uint64_t now = clock_now_ns();
    if (left.tv_sec < 0) {
        return now;
    }
    if (left.tv_sec >= (int64_t)1 << 32) { /* over a century: none */
        return RPC_NO_DEADLINE;
    }
    return now + (uint64_t)left.tv_sec * NS_PER_S + (uint64_t)left.tv_nsec;
}

struct rpc_send_limits send_limits_or_default(const struct rpc_send_limits *limits)
{
    struct rpc_send_limits out = *limits;
    if (out.messages_max == 0) {
        out.messages_max = SEND_MESSAGES_DEFAULT;
    }
    if (out.bytes_max == 0) {
        out.bytes_max = SEND_BYTES_DEFAULT;
    }
    return out;
}

void arg_int(struct arg_list *list, const char *key, int value)
{
    CHECK(list->count < sizeof list->args / sizeof list->args[0]);
    list->args[list->count++] =
        (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

void arg_string(struct arg_list *list, const char *key, const char *value)
{
    CHECK(list->count < sizeof list->args / sizeof list->args[0]);
    list->args[list->count++] = (grpc_arg){.type = GRPC_ARG_STRING,
                                           .key = (char *)(uintptr_t)key,
                                           .value.string = (char *)(uintptr_t)value};
}

status_t arg_common(struct arg_list *list, const struct rpc_keepalive *keepalive, uint32_t message_bytes_max,
                    struct diag *diag)
{
    uint32_t time_ms = keepalive->time_ms != 0 ? keepalive->time_ms : KEEPALIVE_TIME_MS_DEFAULT;
    uint32_t timeout_ms = keepalive->timeout_ms != 0 ? keepalive->timeout_ms : KEEPALIVE_TIMEOUT_MS_DEFAULT;
    uint32_t bytes_max = message_bytes_max != 0 ? message_bytes_max : MESSAGE_BYTES_DEFAULT;
    if (time_ms > INT32_MAX || timeout_ms > INT32_MAX || bytes_max > INT32_MAX) {
        diag_set(diag, "keepalive times and the longest message must be below 2^31 (got %u ms, %u ms, %u bytes)",
                 time_ms, timeout_ms, bytes_max);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    arg_int(list, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)bytes_max);
    arg_int(list, GRPC_ARG_KEEPALIVE_TIME_MS, (int)time_ms);
    arg_int(list, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)timeout_ms);
    arg_int(list, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    /* gRPC's own limits on pings assume that pings are abuse; between our nodes they are how a
     * dead machine is seen in seconds. 0 lifts each limit. */
    arg_int(list, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    arg_int(list, GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    arg_int(list, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10);
    return STATUS_OK;
}

#if defined(__SANITIZE_THREAD__)
/* The distribution's libgrpc is not built with -fsanitize=thread: its locks are atomics that tsan
 * cannot see, so every hand-over inside it looks like a race. This stands in the library and not in
 * a file, so that every binary that links gRPC has it. Nothing of ours is named: a race between
 * two lines of Baton is still reported. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libgrpc.so\n"
           "called_from_lib:libgpr.so\n"
           "called_from_lib:libcrypto.so\n"
           "called_from_lib:libssl.so\n"
           "race:libgrpc.so\n"
           "race:libgpr.so\n"
           "race:libabsl_\n"
           "race:absl::\n"
           "race:grpc_core::\n"
           "mutex:libgrpc.so\n"
           "deadlock:libgrpc.so\n";
}
#endif
