#include "tests/unit/kernels_cuda/emulated_testing.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/rows_args.h"

void ok(status_t st, const struct diag *diag)
{
    if (failed(st)) { fail_msg("%s: %s", status_code_name(st.code), diag->text); }
}

void refused(status_t st, uint8_t code, const struct diag *diag, const char *words)
{
    assert_int_equal(st.code, code);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_true(st.cause != 0);
    if (strstr(diag->text, words) == NULL) { fail_msg("'%s' does not say '%s'", diag->text, words); }
}

void open_bench(struct bench *t, uint64_t seed)
{
    t->d = emulated_device_create(&(struct emulated_options){.seed = seed});
    OK(t->d->stream_create(t->d, false, &t->a, &diag));
    OK(t->d->stream_create(t->d, true, &t->b, &diag));
    OK(t->d->host_alloc(t->d, COUNT * 4, (void **)&t->pinned, &diag));
    OK(t->d->mem_alloc(t->d, COUNT * 4, (void **)&t->device, &diag));
    OK(t->d->mem_alloc(t->d, COUNT * 4, (void **)&t->other, &diag));
}

void close_bench(struct bench *t)
{
    t->d->stream_destroy(t->d, t->a);
    t->d->stream_destroy(t->d, t->b);
    t->d->mem_free(t->d, t->device);
    t->d->mem_free(t->d, t->other);
    t->d->host_free(t->d, t->pinned);
    t->d->close(t->d);
}

uint32_t word(const struct bench *t, const uint32_t *device, uint32_t at)
{
    uint32_t value;
    assert_true(emulated_device_peek(t->d, device + at, &value, 4));
    return value;
}

status_t to_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_TO_DEVICE, to, from, bytes, stream, diag);
}

status_t to_host(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_TO_HOST, to, from, bytes, stream, diag);
}

status_t on_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_ON_DEVICE, to, from, bytes, stream, diag);
}

status_t gather(const struct bench *t, const void *x, const void *from, void *out, struct cuda_stream *stream, struct diag *diag)
{
    struct cuda_gather_rows_args args = {
        .rows = 2, .row_bytes = 8, .x = x, .x_stride_bytes = 8, .from = from, .out = out, .out_stride_bytes = 8};
    struct cuda_launch shape;
    cuda_gather_rows_shape(&args, &shape);
    return t->d->launch(t->d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, stream, diag);
}

void dies(void (*doing)(struct bench *t), struct bench *t, int sig)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        fclose(stderr);
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's own handler would end with another status */
        signal(SIGABRT, SIG_DFL);
        doing(t);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status)) { fail_msg("it lived on (status %d)", status); }
    assert_int_equal(WTERMSIG(status), sig);
}

void note_done(void *user, status_t status)
{
    struct note *note = user;
    pthread_mutex_lock(&note->lock);
    note->count++;
    note->thread = pthread_self();
    note->status = status;
    pthread_cond_signal(&note->changed);
    pthread_mutex_unlock(&note->lock);
}

void wait_for_note(struct note *note, uint32_t count)
{
    pthread_mutex_lock(&note->lock);
    while (note->count < count) { pthread_cond_wait(&note->changed, &note->lock); }
    pthread_mutex_unlock(&note->lock);
}

void shows(lucky_fn is_lucky)
{
    uint32_t lucky = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        bool found[2];
        for (int again = 0; again < 2; again++) {
            struct bench t;
            open_bench(&t, seed);
            found[again] = is_lucky(&t);
            close_bench(&t);
        }
        assert_int_equal(found[0], found[1]);
        lucky += found[0];
    }
    print_message("lucky for %u of %u seeds\n", lucky, SEEDS);
    assert_true(lucky < SEEDS);
}

void holds(lucky_fn is_right)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct bench t;
        open_bench(&t, seed);
        if (!is_right(&t)) { fail_msg("wrong for seed %llu", (unsigned long long)seed); }
        close_bench(&t);
    }
}
