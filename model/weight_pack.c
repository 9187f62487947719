#include "model/weight_pack.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/log.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* of Linux 5.14; in newer headers than some have */
#endif

#define FILE_VERSION 2u
#define HEAD_FIXED_BYTES 80u
#define ITEM_BYTES 40u
#define DATA_ALIGNMENT 4096u
/* Of one checksum, and of one write: small enough that a stop is heard soon and that threads share the
 * work evenly, large enough that the call does not show. Part of the format. */
#define PART_BYTES ((size_t)8 << 20)
#define LOAD_THREADS_MAX 16u
#define NO_PART UINT64_MAX

static const char magic[8] = {'B', 'A', 'T', 'O', 'N', 'P', 'A', 'K'};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file is little endian, and so are the machines we know");

static void put(uint8_t *at, const void *value, size_t bytes) { memcpy(at, value, bytes); }

static uint32_t get_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static uint64_t get_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static uint32_t version(void) { return FILE_VERSION * 1000 + KERNELS_MATRIX_VERSION; }

static size_t items_bytes(const struct weight_pack_plan *plan) { return (size_t)plan->item_count * ITEM_BYTES; }

static size_t sums_bytes(const struct weight_pack_plan *plan)
{
    return (size_t)((plan->bytes + PART_BYTES - 1) / PART_BYTES) * sizeof(uint32_t);
}

static size_t part_bytes(uint64_t bytes, uint64_t at) { return bytes - at < PART_BYTES ? (size_t)(bytes - at) : PART_BYTES; }

size_t weight_pack_head_bytes(const struct weight_pack_plan *plan)
{
    return HEAD_FIXED_BYTES + items_bytes(plan) + sums_bytes(plan);
}

static uint64_t data_offset(const struct weight_pack_plan *plan)
{
    return (weight_pack_head_bytes(plan) + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT;
}

static void item_write(const struct weight_pack_item *item, uint8_t *at)
{
    const struct kernels_matrix *m = &item->matrix;
    const uint32_t words[6] = {(uint32_t)m->format, m->n_out, m->n_in, m->group, (m->has_zeros ? 1u : 0u) | (m->has_order ? 2u : 0u), 0};
    const uint64_t bytes = kernels_matrix_bytes(m);
    put(at, words, sizeof words);
    put(at + 24, &item->offset, 8);
    put(at + 32, &bytes, 8);
}

/* Completes a head, [data_offset()], in which the data's checksums stand already. */
static void head_fill(const struct weight_pack_plan *plan, uint8_t *head)
{
    for (uint32_t i = 0; i < plan->item_count; i++) { item_write(&plan->items[i], head + HEAD_FIXED_BYTES + (size_t)i * ITEM_BYTES); }
    const uint32_t numbers[2] = {version(), plan->item_count};
    const uint64_t sizes[2] = {data_offset(plan), plan->bytes};
    put(head, magic, 8);
    put(head + 8, numbers, 8);
    put(head + 16, sizes, 16);
    put(head + 32, plan->fingerprint, WEIGHT_PACK_FINGERPRINT_BYTES);
    put(head + 64, &plan->stamp, 8);
    uint32_t crc = crc32c(0, head + HEAD_FIXED_BYTES, items_bytes(plan) + sums_bytes(plan));
    put(head + 72, &crc, 4);
    crc = crc32c(0, head, 76);
    put(head + 76, &crc, 4);
}

static status_t refuse(struct diag *diag, const char *why)
{
    diag_set(diag, "%s", why);
    return STATUS(ST_DATA_LOSS, SCOPE_NODE);
}

status_t weight_pack_check(const uint8_t *head, size_t head_bytes, uint64_t file_bytes, const struct weight_pack_plan *plan,
                           struct diag *diag, uint64_t *ret_data_offset)
{
    if (head_bytes < HEAD_FIXED_BYTES || memcmp(head, magic, 8) != 0) { return refuse(diag, "it is no pack file"); }
    if (get_u32(head + 8) != version()) {
        diag_set(diag, "it has version %u; this program reads and writes %u", get_u32(head + 8), version());
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    if (get_u32(head + 76) != crc32c(0, head, 76)) { return refuse(diag, "its header is damaged: the checksum does not hold"); }
    if (memcmp(head + 32, plan->fingerprint, WEIGHT_PACK_FINGERPRINT_BYTES) != 0) { return refuse(diag, "it is of another model"); }
    if (get_u64(head + 64) != plan->stamp) { return refuse(diag, "the model's files have changed since it was made"); }
    if (get_u32(head + 12) != plan->item_count) { return refuse(diag, "it holds another number of matrices"); }
    const size_t lists_bytes = weight_pack_head_bytes(plan) - HEAD_FIXED_BYTES;
    if (get_u64(head + 24) != plan->bytes) { return refuse(diag, "its data has another size"); }
    if (head_bytes - HEAD_FIXED_BYTES < lists_bytes) { return refuse(diag, "it is cut short in its list of matrices"); }
    if (get_u32(head + 72) != crc32c(0, head + HEAD_FIXED_BYTES, lists_bytes)) {
        return refuse(diag, "its list of matrices is damaged: the checksum does not hold");
    }
    for (uint32_t i = 0; i < plan->item_count; i++) {
        uint8_t want[ITEM_BYTES];
        item_write(&plan->items[i], want);
        if (memcmp(want, head + HEAD_FIXED_BYTES + (size_t)i * ITEM_BYTES, ITEM_BYTES) != 0) {
            diag_set(diag, "its matrix %u has another shape, format or place than this model's", i);
            return STATUS(ST_DATA_LOSS, SCOPE_NODE);
        }
    }
    const uint64_t offset = get_u64(head + 16);
    if (offset != data_offset(plan)) { return refuse(diag, "its data begins elsewhere"); }
    if (file_bytes < offset || file_bytes - offset != plan->bytes) {
        diag_set(diag, "it has %llu bytes; its header speaks of %llu", (unsigned long long)file_bytes,
                 (unsigned long long)(offset + plan->bytes));
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    *ret_data_offset = offset;
    return STATUS_OK;
}

/* ---- where ---------------------------------------------------------------------------------- */

static bool folder_make(const char *path) { return (mkdir(path, 0777) == 0 || errno == EEXIST) && access(path, W_OK | X_OK) == 0; }

bool weight_pack_path(const char *choice, const char *model_directory, const struct weight_pack_plan *plan,
                      char ret_path[WEIGHT_PACK_PATH_BYTES])
{
    char folder[PATH_MAX];
    int len;
    if (!choice || strcmp(choice, "off") == 0 || plan->item_count == 0) { return false; }
    if (strcmp(choice, "auto") != 0) {
        len = snprintf(folder, sizeof folder, "%s", choice);
        if (len < 0 || (size_t)len >= sizeof folder || !folder_make(folder)) { return false; }
    } else {
        if (plan->bytes < WEIGHT_PACK_AUTO_BYTES_MIN) { return false; }
        len = snprintf(folder, sizeof folder, "%s", model_directory);
        if (len < 0 || (size_t)len >= sizeof folder || access(folder, W_OK | X_OK) != 0) {
            const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
            if (cache && *cache) {
                len = snprintf(folder, sizeof folder, "%s", cache);
            } else if (home && *home) {
                len = snprintf(folder, sizeof folder, "%s/.cache", home);
            } else {
                return false;
            }
            if (len < 0 || (size_t)len + sizeof "/baton" > sizeof folder || !folder_make(folder)) { return false; }
            strcat(folder, "/baton");
            if (!folder_make(folder)) { return false; }
        }
    }
    /* Formats are in the name too: a node that changes --weights keeps both files. */
    uint32_t formats = 0;
    for (uint32_t i = 0; i < plan->item_count; i++) { formats |= 1u << plan->items[i].matrix.format; }
    char model[2 * 12 + 1];
    for (int i = 0; i < 12; i++) { snprintf(model + 2 * i, 3, "%02x", plan->fingerprint[i]); }
    len = snprintf(ret_path, WEIGHT_PACK_PATH_BYTES, "%s/%s-%02x.v%u.batonpack", folder, model, formats, version());
    return len > 0 && (size_t)len < WEIGHT_PACK_PATH_BYTES;
}

/* ---- load ----------------------------------------------------------------------------------- */

static ssize_t read_at(int fd, uint8_t *to, size_t bytes, uint64_t at)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(fd, to + done, bytes - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) { continue; }
        if (got < 0) { return -1; }
        if (got == 0) { break; }
        done += (size_t)got;
    }
    return (ssize_t)done;
}

struct load_job {
    const uint8_t *data;
    size_t bytes;
    const uint8_t *sums; /* u32 for each part */
    _Atomic uint64_t next;
    _Atomic uint64_t damaged; /* a part whose checksum does not hold, else NO_PART */
};

/* The checksum touches every page anyway; asking for a part's pages at once spares a fault for each, which
 * kernels before 5.14 cannot be asked. */
static void *load_parts(void *arg)
{
    struct load_job *job = arg;
    for (uint64_t part; (part = atomic_fetch_add(&job->next, 1)) * PART_BYTES < job->bytes;) {
        const uint8_t *at = job->data + part * PART_BYTES;
        const size_t bytes = part_bytes(job->bytes, part * PART_BYTES);
        (void)madvise((void *)(uintptr_t)at, bytes, MADV_POPULATE_READ);
        if (crc32c(0, at, bytes) != get_u32(job->sums + 4 * part)) {
            atomic_store(&job->damaged, part);
            atomic_store(&job->next, job->bytes / PART_BYTES + 1); /* the others need not go on */
            break;
        }
    }
    return NULL;
}

static status_t load_data(int fd, uint64_t from, size_t bytes, const uint8_t *sums, uint32_t threads, struct diag *diag, void **ret_data)
{
    void *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, (off_t)from);
    if (data == MAP_FAILED) {
        int cause = errno;
        diag_set(diag, "cannot be mapped: %s", strerror(cause));
        return STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, cause);
    }
    struct load_job job = {.data = data, .bytes = bytes, .sums = sums, .damaged = NO_PART};
    pthread_t ids[LOAD_THREADS_MAX];
    uint32_t started = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started + 1 < threads && started < LOAD_THREADS_MAX && pthread_create(&ids[started], NULL, load_parts, &job) == 0) { started++; }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    load_parts(&job);
    for (uint32_t i = 0; i < started; i++) { pthread_join(ids[i], NULL); }
    const uint64_t damaged = atomic_load(&job.damaged);
    if (damaged != NO_PART) {
        munmap(data, bytes);
        diag_set(diag, "its data is damaged: the checksum of the %zu bytes from %llu on does not hold",
                 part_bytes(bytes, damaged * PART_BYTES), (unsigned long long)(from + damaged * PART_BYTES));
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    *ret_data = data;
    return STATUS_OK;
}

void weight_pack_unload(void *data, uint64_t bytes)
{
    if (data) { munmap(data, (size_t)bytes); }
}

static status_t load_open_file(int fd, const struct weight_pack_plan *plan, uint32_t threads, struct diag *diag, void **ret_data)
{
    struct stat info;
    const size_t head_bytes = weight_pack_head_bytes(plan);
    if (fstat(fd, &info) != 0) {
        diag_set(diag, "cannot be examined: %s", strerror(errno));
        return STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, errno);
    }
    if (!S_ISREG(info.st_mode)) { return refuse(diag, "it is no regular file"); }
    uint8_t *head = malloc(head_bytes);
    if (!head) {
        diag_set(diag, "no memory for its header");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    ssize_t got = read_at(fd, head, head_bytes, 0);
    uint64_t offset = 0;
    status_t st = got < 0 ? STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, errno) : STATUS_OK;
    if (failed(st)) {
        diag_set(diag, "cannot be read: %s", strerror(errno));
    } else {
        st = weight_pack_check(head, (size_t)got, (uint64_t)info.st_size, plan, diag, &offset);
    }
    if (!failed(st)) { st = load_data(fd, offset, (size_t)plan->bytes, head + HEAD_FIXED_BYTES + items_bytes(plan), threads, diag, ret_data); }
    free(head);
    return st;
}

status_t weight_pack_load(const char *path, const struct weight_pack_plan *plan, uint32_t threads, struct diag *diag,
                          void **ret_data)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int cause = errno;
        diag_set(diag, "%s: %s", path, strerror(cause));
        return STATUS_CAUSE(cause == ENOENT ? ST_NOT_FOUND : ST_INTERNAL, SCOPE_NODE, cause);
    }
    status_t st = load_open_file(fd, plan, threads, diag, ret_data);
    close(fd);
    if (failed(st)) { diag_prefix(diag, "%s", path); }
    return st;
}

/* ---- save ----------------------------------------------------------------------------------- */

static int write_all(int fd, const uint8_t *from, size_t bytes, uint64_t at)
{
    while (bytes != 0) {
        ssize_t put_bytes = pwrite(fd, from, bytes, (off_t)at);
        if (put_bytes < 0 && errno == EINTR) { continue; }
        if (put_bytes < 0) { return errno; }
        from += put_bytes;
        at += (uint64_t)put_bytes;
        bytes -= (size_t)put_bytes;
    }
    return 0;
}

/* The data goes first, since the head carries its checksums; both are synced before the file has a name. */
static int write_file(int fd, const struct weight_pack_plan *plan, const uint8_t *data, uint8_t *head, const _Atomic bool *stop)
{
    uint8_t *sums = head + HEAD_FIXED_BYTES + items_bytes(plan);
    for (uint64_t at = 0; at < plan->bytes; at += PART_BYTES, sums += 4) {
        if (stop && atomic_load(stop)) { return ECANCELED; }
        const size_t bytes = part_bytes(plan->bytes, at);
        const uint32_t crc = crc32c(0, data + at, bytes);
        put(sums, &crc, 4);
        const int error = write_all(fd, data + at, bytes, data_offset(plan) + at);
        if (error != 0) { return error; }
    }
    head_fill(plan, head);
    const int error = write_all(fd, head, (size_t)data_offset(plan), 0);
    if (error != 0) { return error; }
    return fsync(fd) != 0 ? errno : 0;
}

/* A file without a name where the file system has such, so that a process that is killed leaves
 * nothing behind; else one that is named after the process. */
static int open_unnamed(const char *path, const char *temporary, bool *ret_is_unnamed)
{
    char folder[WEIGHT_PACK_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) { *slash = '\0'; } else { strcpy(folder, "."); }
    int fd = open(folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
    *ret_is_unnamed = fd >= 0;
    return fd >= 0 ? fd : open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

status_t weight_pack_save(const char *path, const struct weight_pack_plan *plan, const void *data,
                          const _Atomic bool *stop, struct diag *diag)
{
    char temporary[WEIGHT_PACK_PATH_BYTES + 32], link_from[64];
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    uint8_t *head = calloc(1, (size_t)data_offset(plan));
    if (!head) {
        diag_set(diag, "%s: no memory for its header", path);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    bool is_unnamed = false;
    int fd = open_unnamed(path, temporary, &is_unnamed);
    int error = fd < 0 ? errno : write_file(fd, plan, data, head, stop);
    if (error == 0 && is_unnamed) {
        snprintf(link_from, sizeof link_from, "/proc/self/fd/%d", fd);
        (void)unlink(temporary);
        if (linkat(AT_FDCWD, link_from, AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) != 0) { error = errno; }
    }
    if (error == 0 && rename(temporary, path) != 0) { error = errno; }
    if (error != 0 && fd >= 0) { (void)unlink(temporary); }
    if (fd >= 0) { close(fd); }
    free(head);
    if (error != 0) {
        diag_set(diag, "%s: cannot be written: %s", path, strerror(error));
        return STATUS_CAUSE(error == ECANCELED ? ST_CANCELLED : ST_INTERNAL, SCOPE_NODE, error);
    }
    return STATUS_OK;
}

struct weight_pack_saver {
    pthread_t thread;
    char path[WEIGHT_PACK_PATH_BYTES];
    struct weight_pack_plan plan;
    const void *data;
    _Atomic bool stop;
    bool is_joined;
};

static void *saver_main(void *arg)
{
    struct weight_pack_saver *saver = arg;
    struct diag diag;
    /* Linux gives each thread its own nice value: the write must not slow the first requests. */
    if (nice(10) == -1) { errno = 0; }
    status_t st = weight_pack_save(saver->path, &saver->plan, saver->data, &saver->stop, &diag);
    if (failed(st) && st.code != ST_CANCELLED) { LOGF(LOG_WARN, "pack_not_saved", "why=\"%s\"", diag.text); }
    return NULL;
}

void weight_pack_save_later(const char *path, const struct weight_pack_plan *plan, const void *data,
                            struct weight_pack_saver **ret_saver)
{
    *ret_saver = NULL;
    struct weight_pack_saver *saver = calloc(1, sizeof *saver);
    struct weight_pack_item *items = calloc(plan->item_count, sizeof *items);
    if (saver && items) {
        memcpy(items, plan->items, plan->item_count * sizeof *items);
        saver->plan = *plan;
        saver->plan.items = items;
        saver->data = data;
        snprintf(saver->path, sizeof saver->path, "%s", path);
        sigset_t all, before; /* signals belong to the process's main loop */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int error = pthread_create(&saver->thread, NULL, saver_main, saver);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (error == 0) {
            *ret_saver = saver;
            return;
        }
    }
    LOGF(LOG_WARN, "pack_not_saved", "why=\"%s: no memory or no thread to write it\"", path);
    free(items);
    free(saver);
}

void weight_pack_saver_wait(struct weight_pack_saver *saver)
{
    if (!saver || saver->is_joined) { return; }
    pthread_join(saver->thread, NULL);
    saver->is_joined = true;
}

void weight_pack_saver_join(struct weight_pack_saver *saver)
{
    if (!saver) { return; }
    atomic_store(&saver->stop, true);
    weight_pack_saver_wait(saver);
    free((void *)(uintptr_t)saver->plan.items);
    free(saver);
}
