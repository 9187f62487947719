/* tls: PEM files to gRPC credentials.
 * Thread: the caller's. Memory: the files' text while the credentials are made. */
#include "rpc/rpc_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PEM_BYTES_MAX ((size_t)1 << 20)

static status_t read_pem(const char *path, const char *what, char **ret_text, struct diag *diag)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        int err = errno;
        diag_set(diag, "the %s %s cannot be opened: %s", what, path, strerror(err));
        return STATUS_CAUSE(ST_INVALID_ARGUMENT, SCOPE_NODE, err);
    }
    char *text = malloc(PEM_BYTES_MAX + 1);
    if (text == NULL) {
        fclose(file);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    size_t len = fread(text, 1, PEM_BYTES_MAX, file);
    bool bad = ferror(file) != 0 || len == PEM_BYTES_MAX;
    fclose(file);
    text[len] = '\0';
    /* The C core only logs a malformed file, and then drops every connection; say it here. */
    if (bad || strlen(text) != len || strstr(text, "-----BEGIN ") == NULL) {
        diag_set(diag, "the %s %s is not a PEM file (no -----BEGIN line, or over 1 MiB)", what, path);
        free(text);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_text = text;
    return STATUS_OK;
}

struct pem_set {
    char *cert, *key, *ca;
};

static void pem_fini(struct pem_set *set)
{
    free(set->cert);
    if (set->key != NULL) {
        explicit_bzero(set->key, strlen(set->key));
    }
    free(set->key);
    free(set->ca);
}

static status_t pem_init(struct pem_set *set, const struct rpc_tls *tls, struct diag *diag)
{
    *set = (struct pem_set){0};
    if ((tls->cert_file == NULL) != (tls->key_file == NULL)) {
        diag_set(diag, "TLS needs the certificate and its key together; only the %s was given",
                 tls->cert_file != NULL ? "certificate" : "key");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    status_t st = STATUS_OK;
    if (tls->cert_file != NULL) {
        st = read_pem(tls->cert_file, "TLS certificate", &set->cert, diag);
        if (!failed(st)) {
            st = read_pem(tls->key_file, "TLS key", &set->key, diag);
        }
    }
    if (!failed(st) && tls->ca_file != NULL) {
        st = read_pem(tls->ca_file, "TLS CA certificate", &set->ca, diag);
    }
    if (failed(st)) {
        pem_fini(set);
    }
    return st;
}

status_t tls_server_credentials(const struct rpc_tls *tls, grpc_server_credentials **ret_creds, struct diag *diag)
{
    if (!tls->enabled) {
        *ret_creds = grpc_insecure_server_credentials_create();
        return STATUS_OK;
    }
    if (tls->cert_file == NULL) {
        diag_set(diag, "a TLS server needs a certificate and a key");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct pem_set set;
    TRY(pem_init(&set, tls, diag));
    grpc_ssl_pem_key_cert_pair pair = {.private_key = set.key, .cert_chain = set.cert};
    *ret_creds = grpc_ssl_server_credentials_create_ex(
        set.ca, &pair, 1,
        set.ca != NULL ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                       : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
        NULL);
    pem_fini(&set);
    if (*ret_creds == NULL) {
        diag_set(diag, "gRPC refused the TLS certificate %s", tls->cert_file);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

status_t tls_channel_credentials(const struct rpc_tls *tls, grpc_channel_credentials **ret_creds, struct diag *diag)
{
    if (!tls->enabled) {
        *ret_creds = grpc_insecure_credentials_create();
        return STATUS_OK;
    }
    struct pem_set set;
    TRY(pem_init(&set, tls, diag));
    grpc_ssl_pem_key_cert_pair pair = {.private_key = set.key, .cert_chain = set.cert};
    *ret_creds = grpc_ssl_credentials_create_ex(set.ca, set.cert != NULL ? &pair : NULL, NULL, NULL);
    pem_fini(&set);
    if (*ret_creds == NULL) {
        diag_set(diag, "gRPC refused the TLS files of this client");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}
