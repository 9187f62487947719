#include "rpc/descriptor_index.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NESTING_MAX 32 /* messages in messages; protoc's own limit is in this range */
#define NAME_MAX_BYTES 1024

struct symbol {
    char *name;
    uint32_t file;
};

struct extension {
    char *type; /* extended message, full name without the leading dot */
    int32_t number;
    uint32_t file;
};

struct file {
    struct descriptor_file raw;
    char *name;
    char **imports;
    size_t import_count;
};

/* A growing array; item_bytes tells what it holds. */
struct list {
    void *items;
    size_t count, capacity;
};

struct descriptor_index {
    struct list files, symbols, extensions;
};

/* Room for one more zeroed item at the end, or NULL. */
static void *list_add(struct list *list, size_t item_bytes)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity != 0 ? 2 * list->capacity : 16;
        void *items = realloc(list->items, capacity * item_bytes);
        if (items == NULL) {
            return NULL;
        }
        list->items = items;
        list->capacity = capacity;
    }
    void *item = (char *)list->items + list->count++ * item_bytes;
    memset(item, 0, item_bytes);
    return item;
}

/* ---- the wire format: protobuf.dev/programming-guides/encoding ---- */

struct reader {
    const uint8_t *at, *end;
    bool is_bad;
};

struct field {
    uint32_t number;
    uint32_t wire;
    uint64_t value;       /* wire 0 */
    const uint8_t *bytes; /* wire 2 */
    size_t len;
};

static uint64_t read_varint(struct reader *reader)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (reader->at == reader->end) {
            break;
        }
        uint8_t byte = *reader->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            return value;
        }
    }
    reader->is_bad = true;
    return 0;
}

/* False at the end and on anything malformed (is_bad tells which). */
static bool read_field(struct reader *reader, struct field *field)
{
    if (reader->is_bad || reader->at == reader->end) {
        return false;
    }
    uint64_t tag = read_varint(reader);
    *field = (struct field){.number = (uint32_t)(tag >> 3), .wire = (uint32_t)(tag & 7)};
    uint64_t skip = 0;
    switch (field->wire) {
    case 0: field->value = read_varint(reader); break;
    case 1: skip = 8; break;
    case 2: skip = read_varint(reader); break;
    case 5: skip = 4; break;
    default: reader->is_bad = true; /* groups are not in descriptors */
    }
    if (reader->is_bad || tag >> 35 != 0 || field->number == 0 || skip > (uint64_t)(reader->end - reader->at)) {
        reader->is_bad = true;
        return false;
    }
    field->bytes = reader->at;
    field->len = (size_t)skip;
    reader->at += skip;
    return true;
}

static struct reader reader_of(const struct field *field)
{
    return (struct reader){.at = field->bytes, .end = field->bytes + field->len};
}

/* The string in field `number` of a message; len 0 if there is none. */
static struct field find_field(struct reader reader, uint32_t number)
{
    struct field field, found = {0};
    while (read_field(&reader, &field)) {
        if (field.number == number) {
            found = field;
        }
    }
    return found;
}

/* "scope.name" as a new string; NULL where it is too long, empty, or holds a NUL, or without memory. */
static char *join(const char *scope, const struct field *name)
{
    size_t scope_len = strlen(scope);
    if (name->wire != 2 || name->len == 0 || scope_len + name->len + 2 > NAME_MAX_BYTES ||
        memchr(name->bytes, 0, name->len) != NULL) {
        return NULL;
    }
    char *whole = malloc(scope_len + name->len + 2);
    if (whole == NULL) {
        return NULL;
    }
    size_t at = 0;
    if (scope_len > 0) {
        memcpy(whole, scope, scope_len);
        whole[scope_len] = '.';
        at = scope_len + 1;
    }
    memcpy(whole + at, name->bytes, name->len);
    whole[at + name->len] = '\0';
    return whole;
}

/* ---- indexing; false: malformed, or no memory ---- */

/* Adds "scope.name"; ret_name borrows it, may be NULL. */
static bool add_symbol(struct descriptor_index *index, uint32_t file, const char *scope, struct reader body,
                       const char **ret_name)
{
    struct field name = find_field(body, 1);
    char *whole = join(scope, &name);
    struct symbol *symbol = whole != NULL ? list_add(&index->symbols, sizeof *symbol) : NULL;
    if (symbol == NULL) {
        free(whole);
        return false;
    }
    *symbol = (struct symbol){.name = whole, .file = file};
    if (ret_name != NULL) {
        *ret_name = whole;
    }
    return true;
}

/* FieldDescriptorProto that extends: name 1, extendee 2, number 3. */
static bool add_extension(struct descriptor_index *index, uint32_t file, const char *scope, struct reader body)
{
    if (!add_symbol(index, file, scope, body, NULL)) {
        return false;
    }
    struct field type = find_field(body, 2);
    if (type.wire == 2 && type.len > 0 && type.bytes[0] == '.') {
        type.bytes++;
        type.len--;
    }
    char *name = join("", &type);
    struct extension *extension = name != NULL ? list_add(&index->extensions, sizeof *extension) : NULL;
    if (extension == NULL) {
        free(name);
        return false;
    }
    *extension = (struct extension){.type = name, .number = (int32_t)find_field(body, 3).value, .file = file};
    return true;
}

/* EnumDescriptorProto: name 1, value 2. Values are named beside the enum, as in C++. */
static bool add_enum(struct descriptor_index *index, uint32_t file, const char *scope, struct reader body)
{
    bool ok = add_symbol(index, file, scope, body, NULL);
    struct field field;
    while (ok && read_field(&body, &field)) {
        if (field.number == 2 && field.wire == 2) {
            ok = add_symbol(index, file, scope, reader_of(&field), NULL);
        }
    }
    return ok && !body.is_bad;
}

/* DescriptorProto: name 1, field 2, nested_type 3, enum_type 4, extension 6, oneof_decl 8. */
static bool add_message(struct descriptor_index *index, uint32_t file, const char *scope, struct reader body, int depth)
{
    const char *name = NULL;
    bool ok = depth < NESTING_MAX && add_symbol(index, file, scope, body, &name);
    struct field field;
    while (ok && read_field(&body, &field)) {
        if (field.wire != 2) {
            continue;
        }
        switch (field.number) {
        case 2:
        case 8: ok = add_symbol(index, file, name, reader_of(&field), NULL); break;
        case 3: ok = add_message(index, file, name, reader_of(&field), depth + 1); break;
        case 4: ok = add_enum(index, file, name, reader_of(&field)); break;
        case 6: ok = add_extension(index, file, name, reader_of(&field)); break;
        default: break;
        }
    }
    return ok && !body.is_bad;
}

/* ServiceDescriptorProto: name 1, method 2. */
static bool add_service(struct descriptor_index *index, uint32_t file, const char *scope, struct reader body)
{
    const char *name = NULL;
    bool ok = add_symbol(index, file, scope, body, &name);
    struct field field;
    while (ok && read_field(&body, &field)) {
        if (field.number == 2 && field.wire == 2) {
            ok = add_symbol(index, file, name, reader_of(&field), NULL);
        }
    }
    return ok && !body.is_bad;
}

/* FileDescriptorProto: name 1, package 2, dependency 3, message_type 4, enum_type 5, service 6,
 * extension 7. */
static bool add_file(struct descriptor_index *index, const struct field *raw)
{
    struct reader body = reader_of(raw);
    struct field field = find_field(body, 1);
    char *name = join("", &field);
    if (name == NULL) {
        return false;
    }
    if (descriptor_index_by_filename(index, name) != DESCRIPTOR_NONE) {
        free(name);
        return true;
    }
    uint32_t number = (uint32_t)index->files.count;
    struct file *file = list_add(&index->files, sizeof *file);
    if (file == NULL) {
        free(name);
        return false;
    }
    file->name = name;
    file->raw = (struct descriptor_file){.bytes = raw->bytes, .len = raw->len};
    field = find_field(body, 2);
    char *package = field.len > 0 ? join("", &field) : strdup("");
    bool ok = package != NULL;
    while (ok && read_field(&body, &field)) {
        if (field.wire != 2) {
            continue;
        }
        switch (field.number) {
        case 3: {
            struct list imports = {.items = file->imports, .count = file->import_count, .capacity = file->import_count};
            char **slot = list_add(&imports, sizeof *slot);
            if (slot != NULL) {
                *slot = join("", &field);
            }
            file->imports = imports.items;
            file->import_count = imports.count;
            ok = slot != NULL && *slot != NULL;
            break;
        }
        case 4: ok = add_message(index, number, package, reader_of(&field), 0); break;
        case 5: ok = add_enum(index, number, package, reader_of(&field)); break;
        case 6: ok = add_service(index, number, package, reader_of(&field)); break;
        case 7: ok = add_extension(index, number, package, reader_of(&field)); break;
        default: break;
        }
    }
    free(package);
    return ok && !body.is_bad;
}

static int compare_symbols(const void *a, const void *b)
{
    const struct symbol *left = a;
    const struct symbol *right = b;
    return strcmp(left->name, right->name);
}

status_t descriptor_index_create(const struct descriptor_set *sets, size_t count, struct descriptor_index **ret_index,
                                 struct diag *diag)
{
    struct descriptor_index *index = calloc(1, sizeof *index);
    if (index == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    for (size_t i = 0; i < count; i++) {
        struct reader reader = {.at = sets[i].bytes, .end = sets[i].bytes + sets[i].len};
        struct field field;
        bool ok = true;
        while (ok && read_field(&reader, &field)) {
            ok = field.number != 1 || (field.wire == 2 && add_file(index, &field));
        }
        if (!ok || reader.is_bad) {
            diag_set(diag, "descriptor set %zu (%zu bytes) is not a serialized FileDescriptorSet", i, sets[i].len);
            descriptor_index_destroy(index);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
    }
    if (index->symbols.count > 0) {
        qsort(index->symbols.items, index->symbols.count, sizeof(struct symbol), compare_symbols);
    }
    *ret_index = index;
    return STATUS_OK;
}

void descriptor_index_destroy(struct descriptor_index *index)
{
    if (index == NULL) {
        return;
    }
    struct file *files = index->files.items;
    for (size_t i = 0; i < index->files.count; i++) {
        for (size_t k = 0; k < files[i].import_count; k++) {
            free(files[i].imports[k]);
        }
        free(files[i].imports);
        free(files[i].name);
    }
    struct symbol *symbols = index->symbols.items;
    for (size_t i = 0; i < index->symbols.count; i++) {
        free(symbols[i].name);
    }
    struct extension *extensions = index->extensions.items;
    for (size_t i = 0; i < index->extensions.count; i++) {
        free(extensions[i].type);
    }
    free(files);
    free(symbols);
    free(extensions);
    free(index);
}

uint32_t descriptor_index_by_filename(const struct descriptor_index *index, const char *name)
{
    const struct file *files = index->files.items;
    for (size_t i = 0; i < index->files.count; i++) {
        if (strcmp(files[i].name, name) == 0) {
            return (uint32_t)i;
        }
    }
    return DESCRIPTOR_NONE;
}

uint32_t descriptor_index_by_symbol(const struct descriptor_index *index, const char *symbol)
{
    const struct symbol key = {.name = (char *)(uintptr_t)(symbol[0] == '.' ? symbol + 1 : symbol)};
    const struct symbol *found = index->symbols.count == 0
                                     ? NULL
                                     : bsearch(&key, index->symbols.items, index->symbols.count, sizeof key, compare_symbols);
    return found != NULL ? found->file : DESCRIPTOR_NONE;
}

uint32_t descriptor_index_by_extension(const struct descriptor_index *index, const char *type, int32_t number)
{
    const struct extension *extensions = index->extensions.items;
    for (size_t i = 0; i < index->extensions.count; i++) {
        if (extensions[i].number == number && strcmp(extensions[i].type, type) == 0) {
            return extensions[i].file;
        }
    }
    return DESCRIPTOR_NONE;
}

size_t descriptor_index_file_count(const struct descriptor_index *index)
{
    return index->files.count;
}

size_t descriptor_index_closure(const struct descriptor_index *index, uint32_t file, struct descriptor_file *ret_files)
{
    const struct file *files = index->files.items;
    size_t count = 1;
    ret_files[0] = files[file].raw;
    /* ret_files is its own work list: each file put there is visited once, in order. */
    for (size_t at = 0; at < count; at++) {
        const struct file *from = files;
        while (from->raw.bytes != ret_files[at].bytes) {
            from++;
        }
        for (size_t i = 0; i < from->import_count; i++) {
            uint32_t next = descriptor_index_by_filename(index, from->imports[i]);
            bool is_new = next != DESCRIPTOR_NONE;
            for (size_t k = 0; is_new && k < count; k++) {
                is_new = ret_files[k].bytes != files[next].raw.bytes;
            }
            if (is_new) {
                ret_files[count++] = files[next].raw;
            }
        }
    }
    return count;
}

size_t descriptor_index_extensions(const struct descriptor_index *index, const char *type, int32_t *ret_numbers,
                                   size_t capacity)
{
    const struct extension *extensions = index->extensions.items;
    size_t count = 0;
    for (size_t i = 0; i < index->extensions.count; i++) {
        if (strcmp(extensions[i].type, type) == 0) {
            if (count < capacity) {
                ret_numbers[count] = extensions[i].number;
            }
            count++;
        }
    }
    return count;
}
