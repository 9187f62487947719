/* list: a doubly linked list whose links lie inside its members.
 * Thread: the owner's.
 * Memory: none. A member is in one list at most; its link is zero when it is in none. */
#ifndef BATON_SCHED_LIST_H
#define BATON_SCHED_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct list_link {
    struct list_link *previous;
    struct list_link *next;
};

struct list {
    struct list_link head; /* first is head.next, last is head.previous */
    uint32_t count;
};

#define LIST_OWNER(link_, type_, member_) ((type_ *)(void *)((char *)(link_) - offsetof(type_, member_)))

static inline void list_init(struct list *list)
{
    list->head.previous = &list->head;
    list->head.next = &list->head;
    list->count = 0;
}

/* NULL at the end. */
static inline struct list_link *list_first(const struct list *list)
{
    return list->head.next == &list->head ? NULL : list->head.next;
}

static inline struct list_link *list_last(const struct list *list)
{
    return list->head.previous == &list->head ? NULL : list->head.previous;
}

static inline struct list_link *list_next(const struct list *list, const struct list_link *link)
{
    return link->next == &list->head ? NULL : link->next;
}

static inline struct list_link *list_previous(const struct list *list, const struct list_link *link)
{
    return link->previous == &list->head ? NULL : link->previous;
}

/* Puts link behind `after`; NULL: at the front. */
static inline void list_insert(struct list *list, struct list_link *after, struct list_link *link)
{
    if (after == NULL) { after = &list->head; }
    link->previous = after;
    link->next = after->next;
    after->next->previous = link;
    after->next = link;
    list->count++;
}

static inline void list_append(struct list *list, struct list_link *link)
{
    list_insert(list, list->head.previous, link);
}

static inline void list_remove(struct list *list, struct list_link *link)
{
    link->previous->next = link->next;
    link->next->previous = link->previous;
    link->previous = NULL;
    link->next = NULL;
    list->count--;
}

static inline bool list_link_is_in(const struct list_link *link) { return link->next != NULL; }

#endif
