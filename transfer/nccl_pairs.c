#include "transfer/nccl_pairs.h"

#include "base/check.h"

/* Bounds of what is added up, so that no sum wraps: the sizes come from flags, peers and devices. */
#define MEMORY_MOST (UINT64_C(1) << 62)
#define NCCL_BYTES_MOST (UINT64_C(1) << 48)

#define MEASURES 8u
/* Uses closer together than this count as one: the burst of a rare link is no habit (LRU-K's
 * "correlated reference period"). */
#define USE_NS NCCL_PAIRS_UP_MIN_NS

#define RETRY_MIN_NS UINT64_C(100000000)
#define RETRY_SOON_NS UINT64_C(500000000) /* room is on its way: about an abort and a message */
#define RETRY_LATER_NS UINT64_C(1000000000)

enum pair_state { PAIR_FREE, PAIR_OPENING, PAIR_UP, PAIR_CLOSING, PAIR_STUCK };

struct pair {
    enum pair_state state;
    bool overran;     /* CLOSING, STUCK: charged beyond reserved, and that above memory_max */
    bool is_alone;    /* nothing else was opening or closing when it began */
    uint64_t moves;   /* of the table when it began */
    uint32_t link;    /* NCCL_PAIRS_NONE: that link is no more */
    uint32_t busy;
    uint64_t slots_bytes, reserved, charged;
    uint64_t up_ns;
};

struct link {
    bool is_named, waits, is_remote; /* remote: only its P can open, by asking */
    uint32_t pair;                   /* OPENING or UP */
    uint64_t identity, slots_bytes;
    uint64_t use_ns;         /* when the last use began: uses within USE_NS of it are the same */
    uint64_t used_ns;        /* last */
    uint64_t used_before_ns; /* last of the use before; 0: there was none */
    uint64_t waits_since_ns;
    uint64_t pause_ns, broke_ns, after_ns; /* the rung of the ladder; nothing is opened before after_ns */
};

/* What a link that is gone left behind for the next one to the same peer. */
struct grudge { uint64_t identity, pause_ns, broke_ns, after_ns; };

struct nccl_pairs {
    struct nccl_pairs_config config;
    struct nccl_pairs_stats stats;
    struct pair *pairs;     /* [pairs_max] */
    struct link *links;     /* [links_max] */
    struct grudge *grudges; /* [links_max] */
    uint64_t measured[MEASURES];
    uint32_t measures;
    uint64_t moves; /* how often a pair began, was told to end, or ended */
    uint64_t stuck_bytes;
    uint64_t changes_until_ns; /* when all that was closed for others is paid for, at one each NCCL_PAIRS_CHANGE_NS */
};

/* ---- memory */

static size_t align16(size_t bytes) { return (bytes + 15) & ~(size_t)15; }

size_t nccl_pairs_bytes(const struct nccl_pairs_config *config)
{
    return align16(sizeof(struct nccl_pairs)) + align16(config->pairs_max * sizeof(struct pair)) +
           align16(config->links_max * sizeof(struct link)) + align16(config->links_max * sizeof(struct grudge));
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *piece = *at;
    *at += align16(bytes);
    return piece;
}

static uint64_t at_most(uint64_t value, uint64_t most) { return value < most ? value : most; }

struct nccl_pairs *nccl_pairs_init(void *memory, const struct nccl_pairs_config *config)
{
    CHECK(config->pairs_max > 0);
    uint8_t *at = memory;
    struct nccl_pairs *pairs = carve(&at, sizeof *pairs);
    pairs->config = *config;
    pairs->config.memory_max = at_most(config->memory_max, MEMORY_MOST);
    pairs->config.nccl_bytes_first = at_most(config->nccl_bytes_first, NCCL_BYTES_MOST);
    pairs->pairs = carve(&at, config->pairs_max * sizeof *pairs->pairs);
    pairs->links = carve(&at, config->links_max * sizeof *pairs->links);
    pairs->grudges = carve(&at, config->links_max * sizeof *pairs->grudges);
    for (uint32_t i = 0; i < MEASURES; i++) { pairs->measured[i] = pairs->config.nccl_bytes_first; }
    pairs->stats.nccl_bytes_expected = pairs->config.nccl_bytes_first;
    return pairs;
}

static void wish(struct nccl_pairs_wishes *ret, enum nccl_pairs_wish_kind kind, uint32_t link, uint32_t pair,
                 enum nccl_pairs_reason reason)
{
    CHECK(ret->count < ret->count_max);
    ret->wishes[ret->count++] = (struct nccl_pairs_wish){.kind = kind, .link = link, .pair = pair, .reason = reason};
}

/* ---- what a pair costs */

static void charge(struct nccl_pairs *pairs, struct pair *pair, uint64_t bytes)
{
    pairs->stats.memory_bytes += bytes - pair->charged; /* unsigned: also downwards */
    pair->charged = bytes;
    if (pairs->stats.memory_bytes > pairs->stats.memory_bytes_most) {
        pairs->stats.memory_bytes_most = pairs->stats.memory_bytes;
    }
}

/* What to reserve for a pair with these slots; 0: it cannot be had. An expectation that is above the
 * cap by itself is taken for a wrong measure (another process took of the device meanwhile), and tried
 * again once everything can be reserved for it: else one wrong measure would end all pairs for good. */
static uint64_t reserve_of(const struct nccl_pairs *pairs, uint64_t slots_bytes)
{
    uint64_t memory_max = pairs->config.memory_max;
    uint64_t left = memory_max > pairs->stuck_bytes ? memory_max - pairs->stuck_bytes : 0;
    if (slots_bytes > left) { return 0; }
    uint64_t cost = slots_bytes + pairs->stats.nccl_bytes_expected;
    if (cost > memory_max && slots_bytes + pairs->config.nccl_bytes_first <= left) { cost = left; }
    return cost <= left ? cost : 0;
}

static void learn(struct nccl_pairs *pairs, uint64_t nccl_bytes, bool is_probe)
{
    pairs->measured[pairs->measures++ % MEASURES] = nccl_bytes;
    uint64_t most = 0;
    for (uint32_t i = 0; i < MEASURES; i++) {
        if (is_probe) { pairs->measured[i] = nccl_bytes; } /* those before were not believed */
        if (pairs->measured[i] > most) { most = pairs->measured[i]; }
    }
    pairs->stats.nccl_bytes_expected = most;
}

/* ---- a pair's life */

static void open_pair(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t reserve, struct nccl_pairs_wishes *ret)
{
    struct link *link = &pairs->links[link_slot];
    uint32_t slot = 0;
    while (pairs->pairs[slot].state != PAIR_FREE) {
        slot++;
        CHECK(slot < pairs->config.pairs_max);
    }
    pairs->moves++;
    pairs->pairs[slot] = (struct pair){
        .state = PAIR_OPENING,
        .is_alone = pairs->stats.opening == 0 && pairs->stats.closing == 0,
        .moves = pairs->moves,
        .link = link_slot,
        .slots_bytes = link->slots_bytes,
        .reserved = reserve,
    };
    charge(pairs, &pairs->pairs[slot], reserve);
    link->waits = false;
    pairs->stats.waiting--;
    link->pair = slot;
    pairs->stats.opening++;
    pairs->stats.opened++;
    wish(ret, NCCL_PAIRS_OPEN, link_slot, slot, NCCL_PAIRS_FOR_ROOM);
}

static void close_pair(struct nccl_pairs *pairs, struct pair *pair, enum nccl_pairs_reason reason, uint64_t now_ns,
                       struct nccl_pairs_wishes *ret)
{
    struct link *link = &pairs->links[pair->link];
    if (pair->state == PAIR_UP) {
        pairs->stats.up--;
        if (now_ns - pair->up_ns >= NCCL_PAIRS_STEADY_NS) { link->pause_ns = 0; }
    } else {
        pairs->stats.opening--;
    }
    pair->state = PAIR_CLOSING;
    pairs->stats.closing++;
    pairs->moves++;
    link->pair = NCCL_PAIRS_NONE;
    wish(ret, NCCL_PAIRS_CLOSE, pair->link, (uint32_t)(pair - pairs->pairs), reason);
    if (reason == NCCL_PAIRS_GONE) { pair->link = NCCL_PAIRS_NONE; }
}

static void pause_link(struct link *link, uint64_t now_ns)
{
    link->pause_ns = link->pause_ns ? at_most(link->pause_ns * 2, NCCL_PAIRS_PAUSE_MAX_NS) : NCCL_PAIRS_PAUSE_MIN_NS;
    link->broke_ns = now_ns;
    link->after_ns = now_ns + link->pause_ns;
}

/* ---- the line of those that wait
 *
 * The hottest comes first. It leaves the line when it is served, and is itself the coldest soon if it
 * was hot by mistake, so a link starves only while others want more than it does. */

static bool is_hotter(const struct nccl_pairs *pairs, uint32_t a_slot, uint32_t b_slot)
{
    const struct link *a = &pairs->links[a_slot], *b = &pairs->links[b_slot];
    if (a->used_before_ns != b->used_before_ns) { return a->used_before_ns > b->used_before_ns; }
    if (a->waits_since_ns != b->waits_since_ns) { return a->waits_since_ns < b->waits_since_ns; }
    return a_slot < b_slot;
}

/* The one that comes after `last` in line; NCCL_PAIRS_NONE: the first, and as an answer, nobody. */
static uint32_t next_in_line(const struct nccl_pairs *pairs, uint32_t last)
{
    uint32_t next = NCCL_PAIRS_NONE;
    for (uint32_t i = 0; i < pairs->config.links_max; i++) {
        if (!pairs->links[i].waits || i == last) { continue; }
        if (last != NCCL_PAIRS_NONE && !is_hotter(pairs, last, i)) { continue; }
        if (next == NCCL_PAIRS_NONE || is_hotter(pairs, i, next)) { next = i; }
    }
    return next;
}

static void leave_line(struct nccl_pairs *pairs, struct link *link)
{
    if (!link->waits) { return; }
    link->waits = false;
    pairs->stats.waiting--;
}

static bool is_closable_for(const struct nccl_pairs *pairs, const struct pair *pair, const struct link *waiting,
                            uint64_t now_ns)
{
    if (pair->state != PAIR_UP || pair->busy > 0 || now_ns - pair->up_ns < NCCL_PAIRS_UP_MIN_NS) { return false; }
    uint64_t used_ns = pairs->links[pair->link].used_ns;
    return now_ns - used_ns >= NCCL_PAIRS_IDLE_NS || used_ns < waiting->used_before_ns;
}

/* What is free now, and what is free once all that is closing has ended: less what was given to those
 * further ahead in line. */
struct room { uint64_t pairs_now, pairs_soon, bytes_now, bytes_soon; };

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

static struct room room_of(const struct nccl_pairs *pairs)
{
    const struct nccl_pairs_stats *stats = &pairs->stats;
    uint64_t closing_bytes = 0;
    for (uint32_t i = 0; i < pairs->config.pairs_max; i++) {
        if (pairs->pairs[i].state == PAIR_CLOSING) { closing_bytes += pairs->pairs[i].charged; }
    }
    uint64_t taken = (uint64_t)stats->opening + stats->up + stats->stuck;
    return (struct room){
        .pairs_now = pairs->config.pairs_max - taken - stats->closing,
        .pairs_soon = pairs->config.pairs_max - taken,
        .bytes_now = less(pairs->config.memory_max, stats->memory_bytes),
        .bytes_soon = less(pairs->config.memory_max, stats->memory_bytes - closing_bytes),
    };
}

static void take_room(struct room *room, uint64_t bytes)
{
    room->pairs_now = less(room->pairs_now, 1);
    room->pairs_soon -= 1;
    room->bytes_now = less(room->bytes_now, bytes);
    room->bytes_soon -= bytes;
}

static bool may_change(const struct nccl_pairs *pairs, uint64_t now_ns)
{
    return less(pairs->changes_until_ns, now_ns) <= (NCCL_PAIRS_CHANGES - 1) * NCCL_PAIRS_CHANGE_NS;
}

/* Closes as many as it takes beside what is closing already, the least recently used first; none where all
 * of them would not do. */
static bool make_room(struct nccl_pairs *pairs, struct room *room, const struct link *waiting, uint64_t bytes,
                      uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    uint64_t pairs_then = room->pairs_soon, bytes_then = room->bytes_soon;
    for (uint32_t i = 0; i < pairs->config.pairs_max; i++) {
        if (!is_closable_for(pairs, &pairs->pairs[i], waiting, now_ns)) { continue; }
        pairs_then++;
        bytes_then += pairs->pairs[i].charged;
    }
    if (pairs_then < 1 || bytes_then < bytes) { return false; }
    if (room->pairs_soon >= 1 && room->bytes_soon >= bytes) { return true; }
    if (!may_change(pairs, now_ns)) { return false; }
    /* One change, however many it takes. */
    pairs->changes_until_ns = (pairs->changes_until_ns > now_ns ? pairs->changes_until_ns : now_ns) + NCCL_PAIRS_CHANGE_NS;
    while (room->pairs_soon < 1 || room->bytes_soon < bytes) {
        struct pair *oldest = NULL;
        for (uint32_t i = 0; i < pairs->config.pairs_max; i++) {
            struct pair *pair = &pairs->pairs[i];
            if (!is_closable_for(pairs, pair, waiting, now_ns)) { continue; }
            if (!oldest || pairs->links[pair->link].used_ns < pairs->links[oldest->link].used_ns) { oldest = pair; }
        }
        CHECK(oldest != NULL);
        room->pairs_soon++;
        room->bytes_soon += oldest->charged;
        pairs->stats.closed_for_room++;
        close_pair(pairs, oldest, NCCL_PAIRS_FOR_ROOM, now_ns, ret);
    }
    return true;
}

/* Serves the line as far as it goes. asking: the link whose P asks right now, or NCCL_PAIRS_NONE; room is set aside for
 * other remote links, which come back for it. Who is behind one that cannot be served cannot be served either:
 * a colder link may close no more than a hotter one. */
static void serve(struct nccl_pairs *pairs, uint32_t asking, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    if (pairs->stats.waiting == 0) { return; }
    for (uint32_t i = 0; i < pairs->config.links_max; i++) {
        struct link *link = &pairs->links[i];
        if (link->waits && now_ns - link->used_ns > NCCL_PAIRS_WAIT_NS) { leave_line(pairs, link); }
    }
    struct room room = room_of(pairs);
    for (uint32_t i = next_in_line(pairs, NCCL_PAIRS_NONE); i != NCCL_PAIRS_NONE;) {
        struct link *link = &pairs->links[i];
        uint32_t next = next_in_line(pairs, i);
        uint64_t bytes = reserve_of(pairs, link->slots_bytes);
        if (bytes == 0) {
            leave_line(pairs, link); /* what is stuck, or a new measure, left no room for it */
        } else if (room.pairs_now >= 1 && room.bytes_now >= bytes) {
            if (!link->is_remote || i == asking) { open_pair(pairs, i, bytes, ret); }
            take_room(&room, bytes);
        } else if (make_room(pairs, &room, link, bytes, now_ns, ret)) {
            take_room(&room, bytes);
        } else {
            return;
        }
        i = next;
    }
}

/* ---- links */

void nccl_pairs_link(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t identity, uint64_t now_ns)
{
    CHECK(link_slot < pairs->config.links_max);
    struct link *link = &pairs->links[link_slot];
    CHECK(!link->is_named);
    *link = (struct link){.is_named = true, .pair = NCCL_PAIRS_NONE, .identity = identity};
    for (uint32_t i = 0; i < pairs->config.links_max; i++) {
        struct grudge *grudge = &pairs->grudges[i];
        if (grudge->pause_ns == 0 || grudge->identity != identity) { continue; }
        if (now_ns < grudge->after_ns + NCCL_PAIRS_STEADY_NS) {
            link->pause_ns = grudge->pause_ns;
            link->broke_ns = grudge->broke_ns;
            link->after_ns = grudge->after_ns;
        }
        *grudge = (struct grudge){0};
        return;
    }
}

/* Where the table is full the one that ends first is dropped. */
static void remember(struct nccl_pairs *pairs, const struct link *link)
{
    if (link->pause_ns == 0) { return; }
    struct grudge *into = &pairs->grudges[0];
    for (uint32_t i = 0; i < pairs->config.links_max; i++) {
        struct grudge *grudge = &pairs->grudges[i];
        if (grudge->pause_ns > 0 && grudge->identity == link->identity) { into = grudge; break; }
        if (grudge->after_ns < into->after_ns) { into = grudge; }
    }
    *into = (struct grudge){link->identity, link->pause_ns, link->broke_ns, link->after_ns};
}

void nccl_pairs_link_gone(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    CHECK(link_slot < pairs->config.links_max);
    struct link *link = &pairs->links[link_slot];
    if (!link->is_named) { return; }
    leave_line(pairs, link);
    if (link->pair != NCCL_PAIRS_NONE) { close_pair(pairs, &pairs->pairs[link->pair], NCCL_PAIRS_GONE, now_ns, ret); }
    remember(pairs, link);
    link->is_named = false;
    /* Pairs that were closing before: the link's number is about to be another's. */
    for (uint32_t i = 0; i < pairs->config.pairs_max; i++) {
        struct pair *pair = &pairs->pairs[i];
        if (pair->state != PAIR_FREE && pair->link == link_slot) { pair->link = NCCL_PAIRS_NONE; }
    }
}

static void use(struct link *link, uint64_t now_ns)
{
    if (now_ns - link->use_ns >= USE_NS || link->use_ns == 0) {
        link->used_before_ns = link->used_ns;
        link->use_ns = now_ns;
    }
    link->used_ns = now_ns;
}

/* For both ends: gets in line, and is served if it can be. */
static enum nccl_pairs_answer stand_in_line(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t slots_bytes,
                                            bool is_remote, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    struct link *link = &pairs->links[link_slot];
    link->slots_bytes = slots_bytes;
    link->is_remote = is_remote;
    if (reserve_of(pairs, slots_bytes) == 0) {
        leave_line(pairs, link);
        return NCCL_PAIRS_TOO_LARGE;
    }
    if (!link->waits) {
        link->waits = true;
        link->waits_since_ns = now_ns;
        pairs->stats.waiting++;
    }
    serve(pairs, link_slot, now_ns, ret);
    if (link->pair != NCCL_PAIRS_NONE) { return NCCL_PAIRS_IS_OPENING; }
    pairs->stats.no_room++;
    return NCCL_PAIRS_NO_ROOM;
}

enum nccl_pairs_answer nccl_pairs_want(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t slots_bytes, uint64_t now_ns,
                                       struct nccl_pairs_wishes *ret)
{
    CHECK(link_slot < pairs->config.links_max);
    struct link *link = &pairs->links[link_slot];
    CHECK(link->is_named);
    use(link, now_ns);
    if (link->pair != NCCL_PAIRS_NONE) {
        return pairs->pairs[link->pair].state == PAIR_UP ? NCCL_PAIRS_IS_UP : NCCL_PAIRS_IS_OPENING;
    }
    if (now_ns < link->after_ns) { return NCCL_PAIRS_PAUSED; }
    return stand_in_line(pairs, link_slot, slots_bytes, false, now_ns, ret);
}

static bool is_closing_one(const struct nccl_pairs *pairs, uint32_t link_slot)
{
    for (uint32_t i = 0; i < pairs->config.pairs_max; i++) {
        if (pairs->pairs[i].state == PAIR_CLOSING && pairs->pairs[i].link == link_slot) { return true; }
    }
    return false;
}

enum nccl_pairs_answer nccl_pairs_ask(struct nccl_pairs *pairs, uint32_t link_slot, uint64_t slots_bytes, uint64_t now_ns,
                                      uint64_t *ret_retry_ns, struct nccl_pairs_wishes *ret)
{
    CHECK(link_slot < pairs->config.links_max);
    struct link *link = &pairs->links[link_slot];
    CHECK(link->is_named);
    CHECK(link->pair == NCCL_PAIRS_NONE);
    *ret_retry_ns = 0;
    use(link, now_ns);
    /* P pauses by itself, and saw the failure a little earlier or later than we did. Half the pause lets
     * every P through that does, and holds up one that does not. */
    uint64_t after_ns = link->broke_ns + (link->after_ns - link->broke_ns) / 2;
    if (now_ns < after_ns) {
        *ret_retry_ns = after_ns - now_ns;
        return NCCL_PAIRS_PAUSED;
    }
    if (is_closing_one(pairs, link_slot)) {
        *ret_retry_ns = RETRY_SOON_NS;
        pairs->stats.no_room++;
        return NCCL_PAIRS_NO_ROOM;
    }
    enum nccl_pairs_answer answer = stand_in_line(pairs, link_slot, slots_bytes, true, now_ns, ret);
    if (answer == NCCL_PAIRS_TOO_LARGE) { *ret_retry_ns = NCCL_PAIRS_PAUSE_MAX_NS; }
    if (answer == NCCL_PAIRS_NO_ROOM) { *ret_retry_ns = pairs->stats.closing > 0 ? RETRY_SOON_NS : RETRY_LATER_NS; }
    return answer;
}

/* ---- pairs */

static struct pair *pair_of(struct nccl_pairs *pairs, uint32_t slot)
{
    CHECK(slot < pairs->config.pairs_max);
    CHECK(pairs->pairs[slot].state != PAIR_FREE);
    return &pairs->pairs[slot];
}

void nccl_pairs_up(struct nccl_pairs *pairs, uint32_t slot, uint64_t nccl_bytes, uint64_t now_ns,
                   struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    if (pair->state != PAIR_OPENING) {
        CHECK(pair->state != PAIR_UP);
        return;
    }
    pair->state = PAIR_UP;
    pair->up_ns = now_ns;
    pairs->stats.opening--;
    pairs->stats.up++;
    pairs->stats.came_up++;
    if (nccl_bytes > 0 && pair->is_alone && pair->moves == pairs->moves) {
        nccl_bytes = at_most(nccl_bytes, NCCL_BYTES_MOST);
        learn(pairs, nccl_bytes, pair->reserved < pair->slots_bytes + pairs->stats.nccl_bytes_expected);
        charge(pairs, pair, pair->slots_bytes + nccl_bytes);
    }
    if (pair->charged > pair->reserved && pairs->stats.memory_bytes > pairs->config.memory_max) {
        /* It is this one that goes, with a pause: others carry something, and the next is
         * reserved for by what was learnt. */
        struct link *link = &pairs->links[pair->link];
        pair->overran = true;
        pairs->stats.overran++;
        close_pair(pairs, pair, NCCL_PAIRS_OVERRUN, now_ns, ret);
        pause_link(link, now_ns);
    }
    serve(pairs, NCCL_PAIRS_NONE, now_ns, ret); /* it may have taken less than was reserved */
}

void nccl_pairs_busy(struct nccl_pairs *pairs, uint32_t slot, int change, uint64_t now_ns)
{
    struct pair *pair = pair_of(pairs, slot);
    CHECK(change == 1 || change == -1);
    CHECK(change == 1 ? pair->state == PAIR_UP : pair->busy > 0);
    pair->busy += (uint32_t)change;
    /* Not use(): P counted it when the transfer began. And used now, it is closed for nobody yet. */
    if (pair->state == PAIR_UP) { pairs->links[pair->link].used_ns = now_ns; }
}

void nccl_pairs_broke(struct nccl_pairs *pairs, uint32_t slot, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    if (pair->state != PAIR_OPENING && pair->state != PAIR_UP) { return; }
    pairs->stats.broke++;
    struct link *link = &pairs->links[pair->link];
    close_pair(pairs, pair, NCCL_PAIRS_BROKE, now_ns, ret);
    pause_link(link, now_ns); /* after, since close_pair forgives those that were steady */
}

static void free_pair(struct nccl_pairs *pairs, struct pair *pair)
{
    charge(pairs, pair, 0);
    *pair = (struct pair){0};
    pairs->moves++;
}

void nccl_pairs_denied(struct nccl_pairs *pairs, uint32_t slot, uint64_t retry_ns, uint64_t now_ns,
                       struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    if (pair->state != PAIR_OPENING) {
        CHECK(pair->state != PAIR_UP);
        return;
    }
    struct link *link = &pairs->links[pair->link];
    link->pair = NCCL_PAIRS_NONE;
    retry_ns = at_most(retry_ns, NCCL_PAIRS_PAUSE_MAX_NS);
    link->broke_ns = now_ns;
    link->after_ns = now_ns + (retry_ns > RETRY_MIN_NS ? retry_ns : RETRY_MIN_NS);
    pairs->stats.opening--;
    pairs->stats.denied++;
    free_pair(pairs, pair);
    serve(pairs, NCCL_PAIRS_NONE, now_ns, ret);
}

void nccl_pairs_peer_closed(struct nccl_pairs *pairs, uint32_t slot, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    if (pair->state != PAIR_OPENING && pair->state != PAIR_UP) { return; }
    bool was_up = pair->state == PAIR_UP;
    struct link *link = &pairs->links[pair->link];
    close_pair(pairs, pair, NCCL_PAIRS_PEER, now_ns, ret);
    if (!was_up) { pause_link(link, now_ns); }
}

void nccl_pairs_ended(struct nccl_pairs *pairs, uint32_t slot, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    CHECK(pair->state == PAIR_CLOSING || pair->state == PAIR_STUCK);
    if (pair->state == PAIR_CLOSING) {
        pairs->stats.closing--;
    } else {
        pairs->stats.stuck--;
        pairs->stuck_bytes -= pair->charged;
    }
    free_pair(pairs, pair);
    serve(pairs, NCCL_PAIRS_NONE, now_ns, ret);
}

void nccl_pairs_stuck(struct nccl_pairs *pairs, uint32_t slot, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    struct pair *pair = pair_of(pairs, slot);
    CHECK(pair->state == PAIR_CLOSING);
    pair->state = PAIR_STUCK;
    pairs->stats.closing--;
    pairs->stats.stuck++;
    pairs->stuck_bytes += pair->charged;
    serve(pairs, NCCL_PAIRS_NONE, now_ns, ret); /* whoever counted on its room needs another's */
}

void nccl_pairs_tick(struct nccl_pairs *pairs, uint64_t now_ns, struct nccl_pairs_wishes *ret)
{
    serve(pairs, NCCL_PAIRS_NONE, now_ns, ret);
}

/* ---- what it knows */

uint32_t nccl_pairs_of(const struct nccl_pairs *pairs, uint32_t link)
{
    CHECK(link < pairs->config.links_max);
    return pairs->links[link].is_named ? pairs->links[link].pair : NCCL_PAIRS_NONE;
}

const struct nccl_pairs_stats *nccl_pairs_stats(const struct nccl_pairs *pairs) { return &pairs->stats; }

const char *nccl_pairs_answer_name(enum nccl_pairs_answer answer)
{
    switch (answer) {
    case NCCL_PAIRS_IS_UP: return "up";
    case NCCL_PAIRS_IS_OPENING: return "opening";
    case NCCL_PAIRS_NO_ROOM: return "no room";
    case NCCL_PAIRS_PAUSED: return "paused";
    case NCCL_PAIRS_TOO_LARGE: return "too large";
    }
    return "?";
}

bool nccl_pairs_audit(const struct nccl_pairs *pairs)
{
    const struct nccl_pairs_config *config = &pairs->config;
    const struct nccl_pairs_stats *stats = &pairs->stats;
    uint64_t counts[PAIR_STUCK + 1] = {0};
    uint64_t charged = 0, excess = 0, stuck_bytes = 0;
    for (uint32_t i = 0; i < config->pairs_max; i++) {
        const struct pair *pair = &pairs->pairs[i];
        counts[pair->state]++;
        charged += pair->charged;
        if (pair->state == PAIR_FREE && (pair->charged > 0 || pair->busy > 0)) { return false; }
        if (pair->state == PAIR_STUCK) { stuck_bytes += pair->charged; }
        if (pair->state == PAIR_OPENING && (pair->busy > 0 || pair->charged != pair->reserved)) { return false; }
        if (pair->overran) {
            if (pair->state != PAIR_CLOSING && pair->state != PAIR_STUCK) { return false; }
            excess += pair->charged - pair->reserved;
        }
        if (pair->state != PAIR_OPENING && pair->state != PAIR_UP) { continue; }
        if (pair->link >= config->links_max || !pairs->links[pair->link].is_named) { return false; }
        if (pairs->links[pair->link].pair != i) { return false; }
    }
    uint64_t links_with_pair = 0, waiting = 0;
    for (uint32_t i = 0; i < config->links_max; i++) {
        const struct link *link = &pairs->links[i];
        waiting += link->waits;
        if (link->waits && (!link->is_named || link->pair != NCCL_PAIRS_NONE)) { return false; }
        links_with_pair += link->is_named && link->pair != NCCL_PAIRS_NONE;
    }
    return counts[PAIR_OPENING] == stats->opening && counts[PAIR_UP] == stats->up && counts[PAIR_CLOSING] == stats->closing &&
           counts[PAIR_STUCK] == stats->stuck && links_with_pair == counts[PAIR_OPENING] + counts[PAIR_UP] &&
           waiting == stats->waiting && charged == stats->memory_bytes && stuck_bytes == pairs->stuck_bytes &&
           charged - excess <= config->memory_max;
}
