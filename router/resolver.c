#include "router/resolver.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"

struct resolver {
    const struct node_address_list *list;
    uint64_t interval_ns;
    resolver_fn on_answer;
    void *user;
    bool has_thread;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards stop: the thread sleeps on it between rounds */
    pthread_cond_t stopped;
    bool stop;
    int last_error[NODE_ADDRESSES_MAX]; /* to log a failure once */
};

static void add_target(struct resolver_answer *answer, const struct addrinfo *info, uint16_t port)
{
    char host[INET6_ADDRSTRLEN];
    const void *address = info->ai_family == AF_INET6 ? (const void *)&((struct sockaddr_in6 *)(void *)info->ai_addr)->sin6_addr
                                                      : (const void *)&((struct sockaddr_in *)(void *)info->ai_addr)->sin_addr;
    if (!inet_ntop(info->ai_family, address, host, sizeof host)) { return; }
    char *target = answer->targets[answer->count];
    node_address_target(host, port, target);
    for (uint32_t i = 0; i < answer->count; i++) {
        if (strcmp(answer->targets[i], target) == 0) { return; }
    }
    answer->count++;
}

static bool is_final(int error)
{
    return error == EAI_NONAME
#ifdef EAI_NODATA
           || error == EAI_NODATA
#endif
        ;
}

static void resolve(struct resolver *resolver, uint32_t index)
{
    const struct node_address *name = &resolver->list->entries[index];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int error = getaddrinfo(name->host, NULL, &hints, &found);
    if (error != 0 && error != resolver->last_error[index]) {
        LOGF(LOG_WARN, "resolve_failed", "name=%s why=\"%s\"", name->host, gai_strerror(error));
    }
    resolver->last_error[index] = error;
    if (error != 0 && !is_final(error)) { return; }
    size_t count = 0;
    for (struct addrinfo *each = found; each; each = each->ai_next) { count++; }
    struct resolver_answer *answer = calloc(1, sizeof *answer + count * sizeof answer->targets[0]);
    if (answer) {
        answer->name = name;
        for (struct addrinfo *each = found; each; each = each->ai_next) {
            if (each->ai_family == AF_INET || each->ai_family == AF_INET6) { add_target(answer, each, name->port); }
        }
        resolver->on_answer(resolver->user, answer);
    }
    if (found) { freeaddrinfo(found); }
}

static bool sleep_until(struct resolver *resolver, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    pthread_mutex_lock(&resolver->mutex);
    while (!resolver->stop && clock_now_ns() < deadline_ns) {
        pthread_cond_timedwait(&resolver->stopped, &resolver->mutex, &until);
    }
    bool stop = resolver->stop;
    pthread_mutex_unlock(&resolver->mutex);
    return !stop;
}

static void *resolver_main(void *user)
{
    struct resolver *resolver = user;
    do {
        for (uint32_t i = 0; i < resolver->list->count; i++) {
            if (!resolver->list->entries[i].is_numeric) { resolve(resolver, i); }
        }
    } while (sleep_until(resolver, clock_now_ns() + resolver->interval_ns));
    return NULL;
}

status_t resolver_create(const struct node_address_list *list, uint64_t interval_ns, resolver_fn on_answer, void *user,
                         struct resolver **ret_resolver)
{
    struct resolver *resolver = calloc(1, sizeof *resolver);
    if (!resolver) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    *resolver = (struct resolver){.list = list, .interval_ns = interval_ns, .on_answer = on_answer, .user = user};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&resolver->mutex, NULL);
    pthread_cond_init(&resolver->stopped, &attr);
    pthread_condattr_destroy(&attr);
    bool has_name = false;
    for (uint32_t i = 0; i < list->count; i++) { has_name = has_name || !list->entries[i].is_numeric; }
    if (has_name && pthread_create(&resolver->thread, NULL, resolver_main, resolver) != 0) {
        resolver_destroy(resolver);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    resolver->has_thread = has_name;
    *ret_resolver = resolver;
    return STATUS_OK;
}

void resolver_destroy(struct resolver *resolver)
{
    if (!resolver) { return; }
    pthread_mutex_lock(&resolver->mutex);
    resolver->stop = true;
    pthread_cond_signal(&resolver->stopped);
    pthread_mutex_unlock(&resolver->mutex);
    if (resolver->has_thread) { pthread_join(resolver->thread, NULL); }
    pthread_cond_destroy(&resolver->stopped);
    pthread_mutex_destroy(&resolver->mutex);
    free(resolver);
}
