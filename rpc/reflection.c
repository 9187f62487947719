#include "rpc/reflection.h"

#include <stdlib.h>
#include <string.h>

#include "proto/grpc/health/v1/health_descriptor.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/grpc/reflection/v1/reflection_v1_descriptor.h"
#include "proto/grpc/reflection/v1alpha/reflection_v1alpha_descriptor.h"
#include "rpc/reply.h"
#include "rpc/small_request.h"

/* v1 and v1alpha are the same on the wire, so v1's messages serve both. */
typedef Grpc__Reflection__V1__ServerReflectionRequest request_t;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_t;

struct rpc_reflection {
    struct rpc_server *server;
    struct descriptor_index *index;
};

static void send_response(struct rpc_call *call, const response_t *response)
{
    status_t st = reply_send(call, &response->base);
    if (failed(st)) {
        rpc_call_finish_status(call, st, "answers are not being read: ask again once they are", 0);
    }
}

static void answer_error(struct rpc_call *call, response_t *response, uint8_t code, const char *what, const char *name)
{
    struct diag diag;
    diag_set(&diag, "%s: %.512s", what, name);
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = code;
    error.error_message = diag.text;
    response->message_response_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response->error_response = &error;
    send_response(call, response);
}

static void answer_file(const struct rpc_reflection *reflection, struct rpc_call *call, response_t *response,
                        uint32_t file, const char *name)
{
    if (file == DESCRIPTOR_NONE) {
        answer_error(call, response, ST_NOT_FOUND, "this server's descriptors do not hold", name);
        return;
    }
    size_t capacity = descriptor_index_file_count(reflection->index);
    struct descriptor_file *files = calloc(capacity, sizeof *files);
    ProtobufCBinaryData *data = calloc(capacity, sizeof *data);
    if (files == NULL || data == NULL) {
        answer_error(call, response, ST_RESOURCE_EXHAUSTED, "out of memory for", name);
    } else {
        Grpc__Reflection__V1__FileDescriptorResponse found = GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
        found.n_file_descriptor_proto = descriptor_index_closure(reflection->index, file, files);
        for (size_t i = 0; i < found.n_file_descriptor_proto; i++) {
            data[i].len = files[i].len;
            data[i].data = (uint8_t *)(uintptr_t)files[i].bytes;
        }
        found.file_descriptor_proto = data;
        response->message_response_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
        response->file_descriptor_response = &found;
        send_response(call, response);
    }
    free(data);
    free(files);
}

static void answer_extensions(const struct rpc_reflection *reflection, struct rpc_call *call, response_t *response,
                              char *type)
{
    size_t count = descriptor_index_extensions(reflection->index, type, NULL, 0);
    if (count == 0 && descriptor_index_by_symbol(reflection->index, type) == DESCRIPTOR_NONE) {
        answer_error(call, response, ST_NOT_FOUND, "this server's descriptors do not hold", type);
        return;
    }
    int32_t *numbers = calloc(count + 1, sizeof *numbers);
    if (numbers == NULL) {
        answer_error(call, response, ST_RESOURCE_EXHAUSTED, "out of memory for", type);
        return;
    }
    (void)descriptor_index_extensions(reflection->index, type, numbers, count);
    Grpc__Reflection__V1__ExtensionNumberResponse found = GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    found.base_type_name = type;
    found.n_extension_number = count;
    found.extension_number = numbers;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    response->all_extension_numbers_response = &found;
    send_response(call, response);
    free(numbers);
}

static void answer_services(const struct rpc_reflection *reflection, struct rpc_call *call, response_t *response)
{
    typedef Grpc__Reflection__V1__ServiceResponse service_t;
    size_t methods = 0;
    while (rpc_server_service_name(reflection->server, (uint32_t)methods) != NULL) {
        methods++;
    }
    service_t *services = calloc(methods + 1, sizeof *services);
    service_t **pointers = calloc(methods + 1, sizeof(service_t *));
    if (services == NULL || pointers == NULL) {
        answer_error(call, response, ST_RESOURCE_EXHAUSTED, "out of memory for", "the list of services");
    } else {
        size_t count = 0;
        for (size_t i = 0; i < methods; i++) {
            const char *name = rpc_server_service_name(reflection->server, (uint32_t)i);
            bool is_new = true;
            for (size_t k = 0; is_new && k < count; k++) {
                is_new = strcmp(services[k].name, name) != 0;
            }
            if (is_new) {
                grpc__reflection__v1__service_response__init(&services[count]);
                services[count].name = (char *)(uintptr_t)name;
                pointers[count] = &services[count];
                count++;
            }
        }
        Grpc__Reflection__V1__ListServiceResponse list = GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
        list.n_service = count;
        list.service = pointers;
        response->message_response_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
        response->list_services_response = &list;
        send_response(call, response);
    }
    free(pointers);
    free(services);
}

static void ask(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    const struct rpc_reflection *reflection = user;
    request_t *request =
        small_request_unpack(call, &grpc__reflection__v1__server_reflection_request__descriptor, bytes, len);
    if (request == NULL) {
        return;
    }
    response_t response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    response.valid_host = request->host;
    response.original_request = request;
    const struct descriptor_index *index = reflection->index;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(reflection, call, &response, descriptor_index_by_filename(index, request->file_by_filename),
                    request->file_by_filename);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        answer_file(reflection, call, &response, descriptor_index_by_symbol(index, request->file_containing_symbol),
                    request->file_containing_symbol);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION: {
        const Grpc__Reflection__V1__ExtensionRequest *extension = request->file_containing_extension;
        answer_file(reflection, call, &response,
                    descriptor_index_by_extension(index, extension->containing_type, extension->extension_number),
                    extension->containing_type);
        break;
    }
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        answer_extensions(reflection, call, &response, request->all_extension_numbers_of_type);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_services(reflection, call, &response);
        break;
    default:
        answer_error(call, &response, ST_INVALID_ARGUMENT, "the request asks nothing", "set one field of message_request");
    }
    grpc__reflection__v1__server_reflection_request__free_unpacked(request, NULL);
}

static void asked_all(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static const struct rpc_callbacks reflection_callbacks = {.on_message = ask, .on_half_close = asked_all};

static status_t accept_reflection(void *service, struct rpc_call *call, struct rpc_handler *ret_handler,
                                  struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &reflection_callbacks, .user = service};
    return STATUS_OK;
}

status_t rpc_reflection_create(struct rpc_server *server, const struct descriptor_set *sets, size_t count,
                               struct rpc_reflection **ret_reflection, struct diag *diag)
{
    struct rpc_reflection *reflection = calloc(1, sizeof *reflection);
    struct descriptor_set *all = calloc(count + 3, sizeof *all);
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    if (reflection != NULL && all != NULL) {
        reflection->server = server;
        if (count > 0) {
            memcpy(all, sets, count * sizeof *sets);
        }
        all[count] = (struct descriptor_set){.bytes = health_descriptor, .len = health_descriptor_len};
        all[count + 1] = (struct descriptor_set){.bytes = reflection_v1_descriptor, .len = reflection_v1_descriptor_len};
        all[count + 2] =
            (struct descriptor_set){.bytes = reflection_v1alpha_descriptor, .len = reflection_v1alpha_descriptor_len};
        st = descriptor_index_create(all, count + 3, &reflection->index, diag);
    }
    free(all);
    if (!failed(st)) {
        st = rpc_server_register(server, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", accept_reflection,
                                 reflection, diag);
    }
    if (!failed(st)) {
        st = rpc_server_register(server, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                 accept_reflection, reflection, diag);
    }
    if (failed(st)) {
        rpc_reflection_destroy(reflection);
        return st;
    }
    *ret_reflection = reflection;
    return STATUS_OK;
}

void rpc_reflection_destroy(struct rpc_reflection *reflection)
{
    if (reflection == NULL) {
        return;
    }
    descriptor_index_destroy(reflection->index);
    free(reflection);
}
