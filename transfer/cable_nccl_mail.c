/* cable_nccl_mail: facts from the threads of pairs to the transfer thread.
 * Flow:    nccl_pair's told -> [cable_nccl_mail] -> a loop that watches the descriptor -> cable_pair_fact()
 * Thread:  put from any; the rest from the transfer thread. A lock and not a ring of atomics: facts are few.
 * Memory:  a box for each pair, of as many facts as one can tell at most. */
#include "transfer/cable_nccl_state.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"

_Static_assert(NCCL_BOX_FACTS >= NCCL_SLOTS_MAX + 4, "all facts that a pair may have told at a time");

status_t cable_mail_create(uint32_t boxes, struct nccl_mail **ret_mail)
{
    struct nccl_mail *mail = calloc(1, sizeof *mail);
    struct nccl_box *all = calloc(boxes, sizeof *all);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int cause = mail && all && fd >= 0 ? pthread_mutex_init(&mail->lock, NULL) : fd < 0 ? errno : ENOMEM;
    if (cause != 0) {
        if (fd >= 0) { close(fd); }
        free(all);
        free(mail);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
    }
    mail->fd = fd;
    mail->boxes = all;
    for (uint32_t i = 0; i < boxes; i++) { all[i].mail = mail; }
    *ret_mail = mail;
    return STATUS_OK;
}

void cable_mail_destroy(struct nccl_mail *mail)
{
    if (!mail) { return; }
    pthread_mutex_destroy(&mail->lock);
    close(mail->fd);
    free(mail->boxes);
    free(mail);
}

void cable_mail_put(void *box_, const struct nccl_pair_fact *fact)
{
    struct nccl_box *box = box_;
    const uint64_t one = 1;
    pthread_mutex_lock(&box->mail->lock);
    CHECK(box->count < NCCL_BOX_FACTS);
    box->facts[(box->first + box->count++) % NCCL_BOX_FACTS] = *fact;
    ssize_t wrote = write(box->mail->fd, &one, sizeof one); /* under the lock: after the last fact the mail may be destroyed */
    pthread_mutex_unlock(&box->mail->lock);
    CHECK(wrote == (ssize_t)sizeof one);
}

bool cable_mail_take(struct nccl_mail *mail, uint32_t number, struct nccl_pair_fact *ret_fact)
{
    struct nccl_box *box = &mail->boxes[number];
    pthread_mutex_lock(&mail->lock);
    bool any = box->count > 0;
    if (any) {
        *ret_fact = box->facts[box->first];
        box->first = (box->first + 1) % NCCL_BOX_FACTS;
        box->count--;
    }
    pthread_mutex_unlock(&mail->lock);
    return any;
}

void cable_mail_seen(struct nccl_mail *mail)
{
    uint64_t count;
    ssize_t got = read(mail->fd, &count, sizeof count);
    (void)got; /* nothing was there: a turn for its own sake */
}
