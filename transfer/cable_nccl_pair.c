/* cable_nccl_pair: the life of a pair, from the wish for it until nothing of it is left.
 * Flow:    nccl_pairs' wishes, messages of the peer, facts of the pair's thread, time -> [cable_nccl_pair] -> nccl_pair,
 *          messages to the peer, the endpoint's connected and lost
 * Thread:  the transfer thread. Whatever may wait for NCCL is on the pair's own.
 * Memory:  the cable's table. */
#include "transfer/cable_nccl_state.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

static const char *role_of(const struct cable_pair *pair) { return pair->is_sender ? "p" : "d"; }

/* ---- slots */

#define SLOTS_BYTES_AIM (16u * 1024u * 1024u) /* of a pair, where slices are not larger than that */
#define SLOT_ALIGN 256u

struct nccl_shape cable_shape(const struct kv_cable_host *host, const struct kv_layout *prefill, const struct kv_layout *decode)
{
    bool is_decodes = kv_layout_slice_bytes(decode) < kv_layout_slice_bytes(prefill);
    struct nccl_shape shape = {.form = {.pool = *host->layout, .slot = is_decodes ? *decode : *prefill}};
    const struct kv_layout *pool = &shape.form.pool, *slot = &shape.form.slot;
    shape.converts = slot->dtype != pool->dtype || slot->order != pool->order;
    uint32_t frame_blocks = kv_layout_slice_bytes(prefill) == kv_layout_slice_bytes(pool) ? host->frame_blocks : kv_frame_blocks(prefill);
    shape.piece_bytes = kv_layout_slice_bytes(slot);
    shape.slot_bytes = (frame_blocks * shape.piece_bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    uint64_t slots = SLOTS_BYTES_AIM / shape.slot_bytes; /* two at least: one is sent while the other is gathered */
    shape.slot_count = (uint32_t)(slots < 2 ? 2 : slots > NCCL_SLOTS_MAX ? NCCL_SLOTS_MAX : slots);
    return shape;
}

void cable_slot_submit(struct pair_slot *slot, enum kv_memory_op_kind kind, const struct kv_frame *frame, const uint32_t *blocks, uint64_t mark)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable *cable = pair->cable;
    const struct kv_cable_host *host = cable->host;
    slot->op = (struct kv_memory_op){
        .kind = kind,
        .count = frame->count,
        .range_bytes = cable->slice_bytes,
        .mark = mark,
        .slot = nccl_pair_slot(pair->pair, (uint32_t)(slot - pair->slots)),
        .form = pair->shape.converts ? &pair->shape.form : NULL,
        .done = kv_memory_inbox_put,
        .user = &cable->inbox,
    };
    for (uint32_t i = 0; i < frame->count; i++) { slot->op.offsets[i] = kv_layout_slice_offset(host->layout, blocks[i], frame->layer); }
    pair->ops++;
    kv_memory_submit(host->pool.memory, &slot->op);
}

/* ---- words */

static void say_on(struct kv_cable *cable, uint32_t link, const struct nccl_wire_msg *msg)
{
    uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX];
    size_t count = nccl_wire_write(msg, bytes);
    cable->host->say(cable->host->endpoint, link, bytes, count);
}

void cable_say(struct cable_pair *pair, struct nccl_wire_msg *msg)
{
    if (pair->link == NCCL_LINK_GONE) { return; }
    msg->gen = pair->gen;
    say_on(pair->cable, pair->link, msg);
}

void cable_say_kind(struct cable_pair *pair, enum nccl_wire_kind kind)
{
    struct nccl_wire_msg msg = {.kind = kind};
    cable_say(pair, &msg);
}

void cable_say_slot(struct cable_pair *pair, enum nccl_wire_kind kind, const struct pair_slot *slot)
{
    struct nccl_wire_msg msg = {.kind = kind, .slot = (uint32_t)(slot - pair->slots)};
    cable_say(pair, &msg);
}

/* ---- the end */

/* leaks: as nccl_pair_fact says. */
static void pair_leave(struct cable_pair *pair, uint64_t abort_ns, uint32_t leaks)
{
    struct kv_cable *cable = pair->cable;
    if (pair->pair) {
        cable->stats.abort_ns_last = abort_ns;
        if (abort_ns > cable->stats.abort_ns_max) { cable->stats.abort_ns_max = abort_ns; }
        LOGF(LOG_INFO, "nccl_pair_ended", "link=%d role=%s gen=%lu abort_ms=%.1f frames=%lu bytes=%lu was_stuck=%d leaks=%u why=\"%s\"",
             (int)pair->link, role_of(pair), (unsigned long)pair->gen, (double)abort_ns / 1e6, (unsigned long)pair->frames,
             (unsigned long)pair->bytes, pair->is_stuck, leaks, pair->why);
        nccl_pair_destroy(pair->pair);
    }
    pair->pair = NULL;
    pair->state = PAIR_FREE;
    nccl_pairs_ended(cable->table, pair->number, clock_now_ns(), &cable->wishes);
}

/* Ops on its slots come first: the end frees the slots. */
static void end_if_quiet(struct cable_pair *pair)
{
    if (pair->state != PAIR_ENDING || pair->ops > 0 || pair->is_ended) { return; }
    pair->is_ended = true;
    if (pair->pair) {
        nccl_pair_end(pair->pair);
    } else {
        pair_leave(pair, 0, 0);
    }
}

void cable_pair_op_done(struct cable_pair *pair)
{
    CHECK(pair->ops > 0);
    pair->ops--;
    end_if_quiet(pair);
}

static void carry_close(struct kv_cable *cable, const struct nccl_pairs_wish *wish)
{
    static const char *const why[] = {[NCCL_PAIRS_FOR_ROOM] = "idle, and its room is needed", [NCCL_PAIRS_BROKE] = "broke",
        [NCCL_PAIRS_PEER] = "closed by the peer for room", [NCCL_PAIRS_GONE] = "the link is closed",
        [NCCL_PAIRS_OVERRUN] = "it took more memory than there is room for"};
    struct cable_pair *pair = &cable->pairs[wish->pair];
    CHECK(pair->state != PAIR_FREE);
    CHECK(pair->state != PAIR_ENDING);
    if (wish->reason == NCCL_PAIRS_FOR_ROOM || wish->reason == NCCL_PAIRS_OVERRUN) { cable_say_kind(pair, NCCL_WIRE_CLOSE); }
    if (pair->why[0] == '\0') { snprintf(pair->why, sizeof pair->why, "%s", why[wish->reason]); }
    bool requeues = wish->reason != NCCL_PAIRS_BROKE && wish->reason != NCCL_PAIRS_GONE;
    cable->stats.pairs_closed += requeues;
    pair->state = PAIR_ENDING;
    pair->since_ns = clock_now_ns();
    if (pair->is_sender) {
        cable_sender_end(pair, requeues);
        struct nccl_link *link = &cable->links[pair->link];
        if (requeues && link->queue_first && link->starved_ns == 0) {
            link->starved_ns = clock_now_ns();
            (void)cable_link_want(cable, pair->link);
        }
    } else {
        cable_receiver_end(pair);
    }
    if (wish->reason == NCCL_PAIRS_GONE) { pair->link = NCCL_LINK_GONE; }
    end_if_quiet(pair);
}

static void link_lost(struct kv_cable *cable, uint32_t link, status_t status, const char *why)
{
    if (cable->links[link].is_sender) { cable_sender_queue_drop(cable, link); }
    /* A lost device is the node's own matter. Of the rest, whatever it was, another cable or another try may do better. */
    if (status.scope != SCOPE_NODE) { status = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, status.cause); }
    cable->host->lost(cable->host->endpoint, link, status, why);
}

void cable_pair_broke(struct cable_pair *pair, status_t status, const char *text, bool tells)
{
    struct kv_cable *cable = pair->cable;
    uint32_t link = pair->link;
    if (pair->state == PAIR_FREE || pair->state == PAIR_ENDING) { return; }
    CHECK(!cable->is_wishing);
    snprintf(pair->why, sizeof pair->why, "%s", text);
    LOGF(LOG_WARN, "nccl_pair_broke", "link=%u role=%s gen=%lu code=%s cause=%d was=%s text=\"%s\"", link, role_of(pair),
         (unsigned long)pair->gen, status_code_name(status.code), status.cause, pair->state == PAIR_READY ? "ready" : "opening", pair->why);
    if (tells) {
        struct nccl_wire_msg msg = {.kind = NCCL_WIRE_BROKEN, .code = status.code};
        snprintf(msg.text, sizeof msg.text, "%s", text);
        cable_say(pair, &msg);
    }
    char why[sizeof pair->why];
    memcpy(why, pair->why, sizeof why); /* the pair may be over, and another in its place */
    nccl_pairs_broke(cable->table, pair->number, clock_now_ns(), &cable->wishes);
    cable_wishes_run(cable);
    link_lost(cable, link, status, why);
}

void cable_pair_op_failed(struct cable_pair *pair, status_t status, const char *text, bool loses)
{
    if (pair->state != PAIR_ENDING) {
        cable_pair_broke(pair, status, text, true);
        return;
    }
    LOGF(LOG_WARN, "nccl_pair_op_failed", "link=%d role=%s gen=%lu code=%s cause=%d was=ending text=\"%s\"", (int)pair->link, role_of(pair),
         (unsigned long)pair->gen, status_code_name(status.code), status.cause, text);
    if (loses && pair->link != NCCL_LINK_GONE) { link_lost(pair->cable, pair->link, status, text); }
}

/* ---- the beginning */

static void carry_open(struct kv_cable *cable, const struct nccl_pairs_wish *wish)
{
    struct cable_pair *pair = &cable->pairs[wish->pair];
    const struct nccl_link *link = &cable->links[wish->link];
    CHECK(pair->state == PAIR_FREE);
    struct pair_slot *slots = pair->slots;
    *pair = (struct cable_pair){.cable = cable, .number = wish->pair, .link = wish->link, .is_sender = link->is_sender, .slots = slots,
                                .shape = link->shape, .since_ns = clock_now_ns()};
    for (uint32_t i = 0; i < NCCL_SLOTS_MAX; i++) { slots[i] = (struct pair_slot){.pair = pair}; }
    struct nccl_wire_msg msg = {.kind = NCCL_WIRE_OPENED};
    if (pair->is_sender) {
        pair->state = PAIR_ASKED;
        pair->gen = ++cable->gen_next;
        msg.kind = NCCL_WIRE_OPEN;
        msg.open = (struct nccl_wire_open){.identity = cable->identity, .nccl_version = cable->nccl_version, .slot_count = pair->shape.slot_count,
            .slot_bytes = pair->shape.slot_bytes, .dtype = (uint32_t)pair->shape.form.slot.dtype, .order = (uint32_t)pair->shape.form.slot.order};
    } else {
        pair->state = PAIR_GRANTED;
        pair->gen = link->gen_last;
    }
    cable_say(pair, &msg);
}

void cable_wishes_run(struct kv_cable *cable)
{
    if (cable->is_wishing) { return; }
    cable->is_wishing = true;
    for (uint32_t i = 0; i < cable->wishes.count; i++) {
        const struct nccl_pairs_wish wish = cable->wishes.wishes[i];
        if (wish.kind == NCCL_PAIRS_OPEN) { carry_open(cable, &wish); } else { carry_close(cable, &wish); }
    }
    cable->wishes.count = 0;
    cable->is_wishing = false;
    DCHECK(nccl_pairs_audit(cable->table));
}

struct cable_pair *cable_pair_of(struct kv_cable *cable, uint32_t link)
{
    uint32_t number = nccl_pairs_of(cable->table, link);
    return number == NCCL_PAIRS_NONE || cable->pairs[number].state == PAIR_FREE ? NULL : &cable->pairs[number];
}

enum nccl_pairs_answer cable_link_want(struct kv_cable *cable, uint32_t link)
{
    const struct nccl_shape *shape = &cable->links[link].shape;
    enum nccl_pairs_answer answer = nccl_pairs_want(cable->table, link, shape->slot_count * shape->slot_bytes, clock_now_ns(), &cable->wishes);
    cable_wishes_run(cable);
    return answer;
}

static void deny(struct kv_cable *cable, uint32_t link, uint64_t gen, enum status_code code, uint64_t retry_ns, const char *text)
{
    struct nccl_wire_msg msg = {.kind = NCCL_WIRE_DENIED, .gen = gen, .code = (uint32_t)code, .retry_ms = (uint32_t)(retry_ns / NS_PER_MS)};
    snprintf(msg.text, sizeof msg.text, "%s", text);
    cable->stats.pairs_denied++;
    say_on(cable, link, &msg);
}

void cable_pair_asked(struct kv_cable *cable, uint32_t number, const struct nccl_wire_msg *msg)
{
    struct nccl_link *link = &cable->links[number];
    const struct nccl_wire_open *open = &msg->open;
    uint64_t now_ns = clock_now_ns(), retry_ns = 0;
    if (!link->is_known) {
        const struct kv_cable_host *host = cable->host;
        link->is_known = true;
        link->shape = cable_shape(host, host->peer_layout(host->endpoint, number), host->layout);
        nccl_pairs_link(cable->table, number, host->peer_identity(host->endpoint, number), now_ns);
    }
    if (msg->gen <= link->gen_last) {
        cable->stats.messages_stale++;
        return;
    }
    struct cable_pair *pair = cable_pair_of(cable, number);
    if (pair) { /* P has given that one up */
        nccl_pairs_peer_closed(cable->table, pair->number, now_ns, &cable->wishes);
        cable_wishes_run(cable);
    }
    link->gen_last = msg->gen;
    const struct nccl_shape *shape = &link->shape;
    if (open->nccl_version != cable->nccl_version || open->slot_count != shape->slot_count || open->slot_bytes != shape->slot_bytes ||
        open->dtype != (uint32_t)shape->form.slot.dtype || open->order != (uint32_t)shape->form.slot.order) {
        char text[NCCL_WIRE_TEXT_CHARS_MAX];
        snprintf(text, sizeof text, "it has NCCL %u and %u slots of %lu bytes, the receiver %u and %u of %lu: run the same Baton and NCCL",
                 open->nccl_version, open->slot_count, (unsigned long)open->slot_bytes, cable->nccl_version, shape->slot_count,
                 (unsigned long)shape->slot_bytes);
        deny(cable, number, msg->gen, ST_FAILED_PRECONDITION, NCCL_PAIRS_PAUSE_MAX_NS, text);
        return;
    }
    enum nccl_pairs_answer answer = nccl_pairs_ask(cable->table, number, shape->slot_count * shape->slot_bytes, now_ns, &retry_ns, &cable->wishes);
    if (answer != NCCL_PAIRS_IS_OPENING) { deny(cable, number, msg->gen, ST_RESOURCE_EXHAUSTED, retry_ns, nccl_pairs_answer_name(answer)); }
    cable_wishes_run(cable);
}

/* P: nothing was made. */
static void denied(struct cable_pair *pair, const struct nccl_wire_msg *msg)
{
    struct kv_cable *cable = pair->cable;
    uint32_t link = pair->link;
    LOGF(LOG_INFO, "nccl_pair_denied", "link=%u retry_ms=%u text=\"%s\"", link, msg->retry_ms, msg->text);
    cable->stats.pairs_denied++;
    pair->state = PAIR_FREE;
    nccl_pairs_denied(cable->table, pair->number, msg->retry_ms * NS_PER_MS, clock_now_ns(), &cable->wishes);
    cable_wishes_run(cable);
    if (msg->code == ST_FAILED_PRECONDITION) { /* nor will it be */
        cable_sender_queue_drop(cable, link);
        cable->host->lost(cable->host->endpoint, link, STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER), msg->text);
    }
}

static void make(struct cable_pair *pair, uint32_t rank, const uint8_t *id)
{
    struct kv_cable *cable = pair->cable;
    struct nccl_pair_config config = {.api = cable->api, .memory = cable->host->pool.memory, .rank = rank, .channels = cable->channels,
        .slot_count = pair->shape.slot_count, .slot_bytes = pair->shape.slot_bytes, .init_ns = cable->init_ns, .stall_ns = cable->stall_ns,
        .told = cable_mail_put, .user = &cable->mail->boxes[pair->number]};
    if (id) { memcpy(config.id, id, sizeof config.id); }
    struct diag diag = {.text = ""};
    pair->state = PAIR_MAKING;
    status_t st = nccl_pair_create(&config, &diag, &pair->pair);
    if (failed(st)) {
        pair->pair = NULL;
        cable_pair_broke(pair, st, diag.text[0] ? diag.text : "no thread or memory for a pair", true);
    }
}

static void ready_if_both(struct cable_pair *pair)
{
    struct kv_cable *cable = pair->cable;
    if (pair->state != PAIR_MAKING || !pair->up_here || !pair->up_there) { return; }
    pair->state = PAIR_READY;
    cable->links[pair->link].is_wanting = false;
    if (pair->is_sender) { cable_sender_pump(pair); }
    cable->host->connected(cable->host->endpoint, pair->link);
}

/* ---- what the pair's thread tells */

static void up(struct cable_pair *pair, const struct nccl_pair_fact *fact)
{
    struct kv_cable *cable = pair->cable;
    cable->stats.init_ns_last = fact->duration_ns;
    if (fact->duration_ns > cable->stats.init_ns_max) { cable->stats.init_ns_max = fact->duration_ns; }
    LOGF(LOG_INFO, "nccl_pair_up", "link=%u role=%s gen=%lu init_ms=%.1f mib=%.1f channels=%u slots=%u slot_bytes=%zu dtype=%s converts=%d", pair->link, role_of(pair),
         (unsigned long)pair->gen, (double)fact->duration_ns / 1e6, (double)fact->bytes / 1048576.0, cable->channels, pair->shape.slot_count,
         pair->shape.slot_bytes, dtype_name(pair->shape.form.slot.dtype), pair->shape.converts);
    pair->up_here = true;
    cable_say_kind(pair, NCCL_WIRE_UP);
    nccl_pairs_up(cable->table, pair->number, fact->bytes, clock_now_ns(), &cable->wishes);
    cable_wishes_run(cable); /* which may close it: it took too much */
    if (pair->state == PAIR_ENDING) { return; }
    for (uint32_t i = 0; i < cable->links[pair->link].users; i++) { nccl_pairs_busy(cable->table, pair->number, 1, clock_now_ns()); }
    ready_if_both(pair);
}

void cable_pair_fact(struct cable_pair *pair, const struct nccl_pair_fact *fact)
{
    if (fact->kind == NCCL_PAIR_ENDED) {
        CHECK(pair->state == PAIR_ENDING);
        pair_leave(pair, fact->duration_ns, fact->leaks);
        return;
    }
    if (pair->state == PAIR_ENDING) { return; } /* it crossed the end */
    CHECK(pair->state != PAIR_FREE);
    struct nccl_wire_msg msg = {.kind = NCCL_WIRE_ID};
    switch (fact->kind) {
    case NCCL_PAIR_ID:
        memcpy(msg.id, fact->id, sizeof msg.id);
        cable_say(pair, &msg);
        break;
    case NCCL_PAIR_UP: up(pair, fact); break;
    case NCCL_PAIR_PASSED: (pair->is_sender ? cable_sender_passed : cable_receiver_passed)(&pair->slots[fact->slot]); break;
    case NCCL_PAIR_BROKEN: cable_pair_broke(pair, fact->status, fact->text, true); break;
    case NCCL_PAIR_ENDED: break;
    }
}

/* ---- what the peer says */

void cable_pair_message(struct cable_pair *pair, const struct nccl_wire_msg *msg)
{
    struct kv_cable *cable = pair->cable;
    char text[NCCL_WIRE_TEXT_CHARS_MAX + 40];
    switch (msg->kind) {
    case NCCL_WIRE_OPENED:
        if (!pair->is_sender || pair->state != PAIR_ASKED) { break; }
        make(pair, NCCL_RANK_P, NULL);
        return;
    case NCCL_WIRE_DENIED:
        if (!pair->is_sender || pair->state != PAIR_ASKED) { break; }
        denied(pair, msg);
        return;
    case NCCL_WIRE_ID:
        if (pair->is_sender || pair->state != PAIR_GRANTED) { break; }
        make(pair, NCCL_RANK_D, msg->id);
        return;
    case NCCL_WIRE_UP:
        if (pair->state != PAIR_MAKING || pair->up_there) { break; }
        pair->up_there = true;
        ready_if_both(pair);
        return;
    case NCCL_WIRE_SEND:
        if (pair->is_sender || pair->state != PAIR_READY || !cable_receiver_asked(pair, msg)) { break; }
        return;
    case NCCL_WIRE_READY: case NCCL_WIRE_REFUSED:
        if (!pair->is_sender || msg->slot >= pair->shape.slot_count || pair->slots[msg->slot].state != SLOT_ASKED) { break; }
        cable_sender_answered(&pair->slots[msg->slot], msg->kind == NCCL_WIRE_READY);
        return;
    case NCCL_WIRE_CLOSE:
        nccl_pairs_peer_closed(cable->table, pair->number, clock_now_ns(), &cable->wishes);
        cable_wishes_run(cable);
        return;
    case NCCL_WIRE_BROKEN:
        snprintf(text, sizeof text, "the %s says: %s", pair->is_sender ? "receiver" : "sender", msg->text);
        cable_pair_broke(pair, STATUS(ST_UNAVAILABLE, SCOPE_PEER), text, false);
        return;
    case NCCL_WIRE_OPEN: break;
    }
    cable_pair_broke(pair, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer said what no peer says", true);
}

/* ---- time */

static void pair_turn(struct cable_pair *pair, uint64_t now_ns)
{
    struct kv_cable *cable = pair->cable;
    uint64_t age_ns = now_ns - pair->since_ns;
    const status_t late = STATUS(ST_DEADLINE_EXCEEDED, SCOPE_PEER);
    if (pair->state == PAIR_ENDING) {
        bool is_overdue = pair->is_ended ? nccl_pair_is_stuck(pair->pair, now_ns) : age_ns > NCCL_ABORT_NS;
        if (pair->is_stuck || !is_overdue) { return; }
        pair->is_stuck = true;
        LOGF(LOG_ERROR, "nccl_pair_stuck", "link=%d role=%s gen=%lu text=\"%s; its memory stays taken\"", (int)pair->link, role_of(pair),
             (unsigned long)pair->gen, pair->is_ended ? "NCCL does not return from its abort" : "the device is not done with its slots");
        nccl_pairs_stuck(cable->table, pair->number, now_ns, &cable->wishes);
        return;
    }
    if (pair->state == PAIR_FREE) { return; }
    /* The pair has limits of its own; those here are for a peer that does not answer, and for NCCL when it does not return. */
    uint64_t limit_ns = pair->state == PAIR_MAKING ? 2 * cable->init_ns : cable->init_ns;
    if (pair->state != PAIR_READY && age_ns > limit_ns) {
        cable_pair_broke(pair, late, "the peer's part of the pair did not come in time", true);
    } else if (pair->pair && nccl_pair_is_stuck(pair->pair, now_ns)) {
        cable_pair_broke(pair, late, "a call of NCCL does not return", true);
    } else if (pair->state == PAIR_READY && pair->is_sender) {
        for (uint32_t i = 0; i < pair->shape.slot_count; i++) {
            if (pair->slots[i].state != SLOT_ASKED || now_ns - pair->slots[i].since_ns <= 3 * cable->stall_ns) { continue; }
            cable_pair_broke(pair, late, "the receiver does not say that it is ready", true);
            return;
        }
    }
}

void cable_pairs_turn(struct kv_cable *cable, uint64_t now_ns)
{
    for (uint32_t i = 0; i < cable->pairs_max; i++) { pair_turn(&cable->pairs[i], now_ns); }
    nccl_pairs_tick(cable->table, now_ns, &cable->wishes);
    cable_wishes_run(cable);
    for (uint32_t i = 0; i < cable->host->links_max; i++) {
        struct nccl_link *link = &cable->links[i];
        if (!link->is_known || !link->is_sender) { continue; }
        if (link->starved_ns && now_ns - link->starved_ns > cable->init_ns + cable->stall_ns) {
            cable_sender_queue_drop(cable, i);
            cable->host->lost(cable->host->endpoint, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "no pair came up again in time");
        } else if ((link->starved_ns || link->is_wanting) && !cable_pair_of(cable, i)) {
            (void)cable_link_want(cable, i);
        }
    }
}
