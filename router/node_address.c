#include "router/node_address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static bool host_is_numeric(const char *host)
{
    unsigned char address[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1;
}

static status_t bad(struct diag *diag, const char *flag, const char *entry, const char *why)
{
    diag_set(diag, "--%s: entry \"%s\" %s; write host:port, [v6]:port or name:port, with commas between", flag, entry, why);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static status_t add_entry(struct node_address_list *list, enum node_role role, const char *flag, const char *text,
                          struct diag *diag)
{
    struct node_address entry = {.role = role};
    if (text[0] == '\0') { return bad(diag, flag, text, "is empty"); }
    status_t st = net_address_split(text, entry.host, &entry.port, diag);
    if (failed(st)) {
        diag_prefix(diag, "--%s", flag);
        return st;
    }
    if (entry.port == 0) { return bad(diag, flag, text, "has port 0"); }
    entry.is_numeric = host_is_numeric(entry.host);
    if (!entry.is_numeric && strchr(entry.host, ':')) { return bad(diag, flag, text, "is not an IPv6 address"); }
    for (uint32_t i = 0; i < list->count; i++) {
        const struct node_address *other = &list->entries[i];
        if (other->port == entry.port && strcmp(other->host, entry.host) == 0) {
            return bad(diag, flag, text, "is given twice: a node has one address and one role");
        }
    }
    if (list->count == NODE_ADDRESSES_MAX) { return bad(diag, flag, text, "is one too many: at most 256 are taken"); }
    list->entries[list->count++] = entry;
    return STATUS_OK;
}

status_t node_address_add(struct node_address_list *list, enum node_role role, const char *flag,
                          const struct flag_list *values, struct diag *diag)
{
    for (uint32_t i = 0; i < values->count; i++) {
        const char *at = values->values[i];
        for (;;) {
            size_t len = strcspn(at, ",");
            char text[NODE_TARGET_CHARS_MAX + 64];
            snprintf(text, sizeof text, "%.*s", (int)(len < sizeof text ? len : sizeof text - 1), at);
            TRY(add_entry(list, role, flag, text, diag));
            if (at[len] == '\0') { break; }
            at += len + 1;
        }
    }
    return STATUS_OK;
}

void node_address_target(const char *host, uint16_t port, char ret_target[NODE_TARGET_CHARS_MAX])
{
    snprintf(ret_target, NODE_TARGET_CHARS_MAX, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)port);
}
