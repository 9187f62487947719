#include "node/node_config.h"

#include <stddef.h>
#include <string.h>

#include "base/net_address.h"

#define AT(field) offsetof(struct node_config, field)

const struct flag node_flags[] = {
    {"listen", FLAG_STRING, AT(listen), "127.0.0.1:0", "H:P", "Address for routers and peers; port 0 picks one.", 0, 0},
    {"advertise", FLAG_STRING, AT(advertise), NULL, "H:P",
     "Address that tickets name; default: --listen, with this machine's address for a wildcard.", 0, 0},
    {"name", FLAG_STRING, AT(name), NULL, "NAME", "Name in logs and status; default: host name and port.", 0, 0},
    {"model", FLAG_STRING, AT(model), NULL, "DIR", "Hugging Face model directory.", 0, 0},
    {"load", FLAG_STRING, AT(load), "auto", "auto|dummy", "dummy: random weights at the config's shape.", 0, 0},
    {"backend", FLAG_STRING, AT(backend), "cpu", "cpu|cuda", "What computes. cuda: one GPU, which weights and KV pool must fit into; its driver is found at start. Both pools must agree.", 0, 0},
    {"device", FLAG_U32, AT(device), "0", "N", "With --backend=cuda: which GPU, as the driver counts them. One process each.", 0, 1023},
    {"deterministic", FLAG_BOOL, AT(deterministic), NULL, NULL, "With --backend=cuda: the same tokens whatever else is in the batch, at some cost; on a CPU it is always so. Both pools must agree.", 0, 0},
    {"threads", FLAG_U32, AT(threads), "0", "N", "Compute threads; 0: one per core this process may use.", 0, 256},
    {"isa", FLAG_STRING, AT(isa), "auto", "auto|amx|avx512bf16|avx512|avx2|scalar|ref", "Instruction set of the kernels; auto: the best that this machine has; ref: a slow one to compare with. Both pools must agree.", 0, 0},
    {"compute", FLAG_STRING, AT(compute), "auto", "auto|f32|bf16", "What products round activations to: bf16 is faster where the machine multiplies it. auto: bf16 where it does, the files' weights are bf16 and take 256 MiB or more; else f32. Both pools must agree.", 0, 0},
    {"weights", FLAG_STRING, AT(weights), "auto", "auto|bf16|int8|int4", "Format of the weight matrices, quantized at load: int8 has a scale for each output, int4 one for 32 inputs (embedding and head int8). auto: as the files have them.", 0, 0},
    {"pack-cache", FLAG_STRING, AT(pack_cache), "auto", "auto|off|DIR", "Where packed weights are kept for the next start. auto: beside the model if that is writable, else in ~/.cache/baton, for models of 64 MiB or more.", 0, 0},
    {"kv-memory", FLAG_BYTES_OR_AUTO, AT(kv_memory), "256MiB", "auto|SIZE",
     "Memory of the KV block pool; of the GPU's with --backend=cuda, where auto takes nine tenths of what all else leaves free.", 0, 0},
    {"kv-host-memory", FLAG_BYTES, AT(kv_host_memory), "0", "SIZE", "Host memory for KV blocks that the pool gives up; 0: none.", 0, 0},
    {"kv-disk", FLAG_BYTES, AT(kv_disk), "0", "SIZE", "Disk for KV blocks that --kv-host-memory gives up, or the pool itself; 0: none. Kept over restarts.", 0, 0},
    {"kv-disk-path", FLAG_STRING, AT(kv_disk_path), NULL, "FILE", "Its file, this node's alone; made, and reset when it is of another model or size.", 0, 0},
    {"kv-dtype", FLAG_STRING, AT(kv_dtype), "auto", "auto|f32|bf16|f16|int8|fp8", "Number format of the KV cache; auto: the weights', or f32 for a model whose whole context takes no more than 4 MiB. int8 and fp8 (e4m3) halve the bytes of bf16 in memory and on the wire.", 0, 0},
    {"kv-block-tokens", FLAG_U32, AT(block_tokens), "16", "tokens", "Tokens per KV block, 16 or 32; compared at handshake.", 16, 32},
    {"step-tokens", FLAG_U32, AT(step_tokens), "512", "tokens", "Most rows of one engine step.", 1, 65536},
    {"chunk-tokens", FLAG_U32, AT(chunk_tokens), "256", "tokens", "Most rows of one prompt in one step.", 1, 65536},
    {"batch-max", FLAG_U32, AT(batch_max), "64", "N", "Sequences that run at once; prefill: first tokens of one step.", 1, 4096},
    {"waiting-max", FLAG_U32, AT(waiting_max), "256", "N", "Legs beyond --batch-max that may wait; one more is refused.", 0, 65536},
    {"prefix-cache", FLAG_STRING, AT(prefix_cache), "on", "on|off", "Blocks outlive their requests and are found again by what they hold.", 0, 0},
    {"preempt", FLAG_STRING, AT(preempt), "auto", "auto|swap|recompute", "decode: whether a sequence that gives way saves its blocks in a KV tier or is computed again; auto: the cheaper by measured rates.", 0, 0},
    {"itl-stretch", FLAG_F32, AT(itl_stretch), "1.5", "X", "decode: a step with prompt rows in it takes at most so many times the time of one without; 0: no limit but --chunk-tokens.", 0, 0},
    {"routers-max", FLAG_U32, AT(routers_max), "16", "N", "Routers attached at once.", 1, 256},
    /* Not a liveness check: a dead link is seen within seconds, a dead node or router at once, and
     * each takes its grants back. A prompt may wait in a prefill node's queue for longer than any
     * short lease, and then a busy cluster would throw its own work away. */
    {"lease", FLAG_DURATION, AT(lease_ns), "10m", "TIME", "Last resort: a grant without a byte for this long is taken back.", 1000000, UINT64_C(3600000000000)},
    {"cables", FLAG_STRING, AT(cables), "auto", "auto|shm|nccl|ucx|tcp", "How KV blocks may travel: auto, or names in the order to prefer them, as shm,tcp.", 0, 0},
    {"ucx", FLAG_STRING, AT(ucx), "off", "off|rdma|trust-network",
     "The ucx cable: over RDMA hardware; trust-network: over TCP too, where whoever reaches UCX's port can write this process's memory.", 0, 0},
    {"ucx-library", FLAG_STRING, AT(ucx_library), NULL, "FILE", "UCX 1.19 or newer; default: libucp.so.0 where the system has it.", 0, 0},
    {"nccl", FLAG_STRING, AT(nccl), "off", "off|on",
     "The nccl cable, between pools on GPUs: a communicator for each pair of nodes, made beside the traffic. Needs --backend=cuda.", 0, 0},
    {"nccl-library", FLAG_STRING, AT(nccl_library), NULL, "FILE", "NCCL 2.19 or newer; default: libnccl.so.2 where the system has it.", 0, 0},
    {"nccl-channels", FLAG_U32, AT(nccl_channels), "4", "N", "Channels of a communicator: more are faster, and take more of the GPU's processors and memory.", 1, 32},
    {"nccl-pairs-max", FLAG_U32, AT(nccl_pairs_max), "0", "N",
     "Communicators at once; 0: one for each link. Where one more is wanted the one idle for longest makes room, or the next cable carries.", 0, 1024},
    {"nccl-memory", FLAG_BYTES, AT(nccl_memory), "2GiB", "SIZE", "GPU memory for all communicators together, taken as they come up.",
     UINT64_C(64) << 20, UINT64_C(1) << 40},
    {"nccl-init-timeout", FLAG_DURATION, AT(nccl_init_timeout_ns), "15s", "TIME", "A communicator that is not up by then is given up, and tried again later.",
     UINT64_C(100000000), UINT64_C(600000000000)},
    {"kv-convert", FLAG_STRING, AT(kv_convert), "off", "off|on",
     "The two pools may differ in --kv-dtype where both say on: nccl converts, needs --nccl=on, and is then the only cable between them. Tokens are those "
     "of a decode node whose prompt KV went through the smaller format, not those of either format alone.", 0, 0},
    {"tcp-listen", FLAG_STRING, AT(tcp_listen), "0.0.0.0:0", "H:P", "decode: where the tcp cable listens.", 0, 0},
    {"uds-dir", FLAG_STRING, AT(uds_dir), NULL, "DIR",
     "decode: folder of the shm cable's socket; default: XDG_RUNTIME_DIR, else one of this user alone in /tmp.", 0, 0},
    {"metrics-listen", FLAG_STRING, AT(metrics_listen), NULL, "H:P", "Serve /metrics here; default: off.", 0, 0},
    {"tls-cert", FLAG_STRING, AT(tls_cert), NULL, "FILE", "PEM certificate; with key and CA: mutual TLS everywhere.", 0, 0},
    {"tls-key", FLAG_STRING, AT(tls_key), NULL, "FILE", "PEM key of --tls-cert.", 0, 0},
    {"tls-ca", FLAG_STRING, AT(tls_ca), NULL, "FILE", "PEM certificates of the CA that peers must show.", 0, 0},
    {"drain-timeout", FLAG_DURATION, AT(drain_timeout_ns), "60s", "TIME", "After SIGTERM: longest wait for what is here.", 0, 0},
    {"log-level", FLAG_STRING, AT(log_level), "info", "LEVEL", "error, warn, info or debug.", 0, 0},
    {"print-config", FLAG_BOOL, AT(print_config), NULL, NULL, "Print every flag as it is set, then exit.", 0, 0},
    {"check", FLAG_BOOL, AT(check), NULL, NULL, "Load everything, print the memory plan, then exit.", 0, 0},
};

const uint32_t node_flag_count = sizeof node_flags / sizeof node_flags[0];

static status_t bad(struct diag *diag, const char *text)
{
    diag_set(diag, "%s", text);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static bool is_one_of(const char *value, const char *const *words, size_t word_count)
{
    for (size_t i = 0; i < word_count; i++) {
        if (value && strcmp(value, words[i]) == 0) { return true; }
    }
    return false;
}

/* Words that the model and the kernels understand. A model takes seconds to minutes to open: what is misspelt
 * is told before. Whether this machine has an instruction set, the kernels say. */
static status_t check_words(const struct node_config *config, struct diag *diag)
{
    static const char *const isas[] = {"auto", "amx", "avx512bf16", "avx512", "avx2", "scalar", "ref", "amx-emulated"}; /* the last for tests */
    static const char *const computes[] = {"auto", "f32", "bf16"};
    static const char *const weights[] = {"auto", "bf16", "int8", "int4"};
    static const char *const kv_dtypes[] = {"auto", "f32", "bf16", "f16", "int8", "fp8", "fp8_e4m3"}; /* the last as the log says it */
    const struct { const char *flag, *value, *takes; const char *const *words; size_t count; } flags[] = {
        {"isa", config->isa, "auto, amx, avx512bf16, avx512, avx2, scalar or ref", isas, sizeof isas / sizeof isas[0]},
        {"compute", config->compute, "auto, f32 or bf16", computes, sizeof computes / sizeof computes[0]},
        {"weights", config->weights, "auto, bf16, int8 or int4", weights, sizeof weights / sizeof weights[0]},
        {"kv-dtype", config->kv_dtype, "auto, f32, bf16, f16, int8 or fp8", kv_dtypes, sizeof kv_dtypes / sizeof kv_dtypes[0]},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (is_one_of(flags[i].value, flags[i].words, flags[i].count)) { continue; }
        diag_set(diag, "--%s=%.64s: takes %s", flags[i].flag, flags[i].value ? flags[i].value : "", flags[i].takes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

/* A named set is taken whatever --compute says: it would silently keep f32, or silently round. */
static status_t check_compute(const struct node_config *config, struct diag *diag)
{
    static const char *const with_bf16[] = {"amx", "avx512bf16", "amx-emulated"};
    if (strcmp(config->isa, "auto") == 0) { return STATUS_OK; }
    bool rounds = is_one_of(config->isa, with_bf16, sizeof with_bf16 / sizeof with_bf16[0]);
    if (strcmp(config->compute, "bf16") == 0 && !rounds) {
        diag_set(diag, "--compute=bf16 needs --isa=auto, avx512bf16 or amx: the kernels of --isa=%.64s keep activations f32", config->isa);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(config->compute, "f32") == 0 && rounds) {
        diag_set(diag, "--compute=f32 needs --isa=auto, avx512, avx2, scalar or ref: the kernels of --isa=%.64s round activations to bf16", config->isa);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

/* What a device would not heed is refused rather than ignored. */
static status_t check_backend(const struct node_config *config, struct diag *diag)
{
    static const char *const backends[] = {"cpu", "cuda"};
    const char *backend = config->backend ? config->backend : "cpu";
    if (!is_one_of(backend, backends, 2)) {
        diag_set(diag, "--backend=%.64s: takes cpu or cuda", backend);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(backend, "cpu") == 0) {
        if (config->kv_memory == FLAG_AUTO) { return bad(diag, "--kv-memory=auto needs --backend=cuda: host memory is others' too, so say how much of it"); }
        return config->device == 0 ? STATUS_OK : bad(diag, "--device needs --backend=cuda: it is the number of a GPU");
    }
    static const char *const as_files[] = {"auto", "bf16"};
    if (strcmp(config->isa, "auto") != 0) { return bad(diag, "--isa needs --backend=cpu: it is the instruction set of a CPU"); }
    if (strcmp(config->compute, "auto") != 0) {
        return bad(diag, "--compute needs --backend=cpu: on a GPU products take activations of the weights' own format");
    }
    if (!is_one_of(config->weights, as_files, 2)) {
        diag_set(diag, "--weights=%.64s needs --backend=cpu: on a GPU weights are bf16, f16 or f32, as the files have them", config->weights);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(config->pack_cache, "auto") != 0) { return bad(diag, "--pack-cache needs --backend=cpu: for a GPU nothing is packed"); }
    return STATUS_OK;
}

static const char *const cable_names[] = {"shm", "nccl", "ucx", "tcp"};
enum { CABLE_SHM, CABLE_NCCL, CABLE_UCX, CABLE_TCP, CABLE_COUNT };

/* Names, each at most once.
 * ret_named  bit i: cable_names[i] */
static bool cables_are_known(const char *cables, unsigned *ret_named)
{
    unsigned named = 0;
    for (const char *at = cables;;) {
        size_t chars = strcspn(at, ",");
        unsigned which = 0;
        while (which < CABLE_COUNT && (strlen(cable_names[which]) != chars || strncmp(at, cable_names[which], chars) != 0)) { which++; }
        if (which == CABLE_COUNT || named >> which & 1u) { return false; }
        named |= 1u << which;
        if (at[chars] == '\0') { break; }
        at += chars + 1;
    }
    *ret_named = named;
    return true;
}

bool node_config_wants_device(const struct node_config *config) { return config->backend && strcmp(config->backend, "cpu") != 0; }
bool node_config_wants_nccl(const struct node_config *config) { return config->nccl && strcmp(config->nccl, "on") == 0; }

bool node_config_converts(const struct node_config *config) { return config->kv_convert && strcmp(config->kv_convert, "on") == 0; }

/* A cable that is off unless its flag turns it on is named in both places, or in neither. */
static status_t check_switch(const struct node_config *config, unsigned named, unsigned cable, bool is_on, const char *how, struct diag *diag)
{
    const char *name = cable_names[cable];
    bool is_named = named >> cable & 1u;
    if (is_named && !is_on) {
        diag_set(diag, "--cables names %s and --%s=off: %s turns it on", name, name, how);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (is_on && !is_named && strcmp(config->cables, "auto") != 0) {
        diag_set(diag, "--%s turns on a cable that --cables does not name", name);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

static status_t check_cables(const struct node_config *config, struct diag *diag)
{
    static const char *const modes[] = {"off", "rdma", "trust-network"};
    static const char *const switches[] = {"off", "on"};
    unsigned named = 0;
    if (strcmp(config->cables, "auto") != 0 && !cables_are_known(config->cables, &named)) {
        diag_set(diag, "--cables=%s: takes auto, or of shm, nccl, ucx and tcp each at most once, in the order to prefer them, as tcp,shm", config->cables);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!is_one_of(config->ucx, modes, 3)) { return bad(diag, "--ucx: takes off, rdma or trust-network"); }
    if (config->nccl && !is_one_of(config->nccl, switches, 2)) { return bad(diag, "--nccl: takes off or on"); }
    if (config->kv_convert && !is_one_of(config->kv_convert, switches, 2)) { return bad(diag, "--kv-convert: takes off or on"); }
    if (node_config_converts(config) && !node_config_wants_nccl(config)) {
        return bad(diag, "--kv-convert=on needs --nccl=on: no other cable converts KV blocks on their way");
    }
    TRY(check_switch(config, named, CABLE_UCX, strcmp(config->ucx, "off") != 0, "--ucx=rdma or --ucx=trust-network", diag));
    TRY(check_switch(config, named, CABLE_NCCL, node_config_wants_nccl(config), "--nccl=on", diag));
    if (node_config_wants_nccl(config) && !node_config_wants_device(config)) {
        return bad(diag, "--nccl=on needs --backend=cuda: it moves KV blocks between pools on GPUs");
    }
    return STATUS_OK;
}

static status_t check_tiers(const struct node_config *config, struct diag *diag)
{
    bool has_path = config->kv_disk_path != NULL && config->kv_disk_path[0] != '\0';
    if (config->kv_disk > 0 && !has_path) { return bad(diag, "--kv-disk needs --kv-disk-path: the file to keep blocks in"); }
    if (config->kv_disk == 0 && has_path) { return bad(diag, "--kv-disk-path needs --kv-disk: how much of the disk to take"); }
    if ((config->kv_disk > 0 || config->kv_host_memory > 0) && strcmp(config->prefix_cache, "on") != 0) {
        return bad(diag, "--kv-host-memory and --kv-disk need --prefix-cache=on: what lies in a tier is found by its prefix");
    }
    if (strcmp(config->preempt, "swap") == 0 && config->kv_disk == 0 && config->kv_host_memory == 0) {
        return bad(diag, "--preempt=swap needs --kv-host-memory or --kv-disk: a tier to save the blocks in");
    }
    return STATUS_OK;
}

static status_t check_cache(const struct node_config *config, struct diag *diag)
{
    static const char *const switches[] = {"on", "off"};
    static const char *const ways[] = {"auto", "swap", "recompute"};
    if (!is_one_of(config->prefix_cache, switches, 2)) { return bad(diag, "--prefix-cache: takes on or off"); }
    if (!is_one_of(config->preempt, ways, 3)) { return bad(diag, "--preempt: takes auto, swap or recompute"); }
    bool is_stretch = config->itl_stretch == 0 || (config->itl_stretch >= 1 && config->itl_stretch <= 1000);
    if (!is_stretch) { return bad(diag, "--itl-stretch: takes 0, for no limit, or 1 to 1000"); }
    return STATUS_OK;
}

status_t node_config_check(const struct node_config *config, struct diag *diag)
{
    if (!config->model) { return bad(diag, "--model: needed, a Hugging Face model directory"); }
    if (config->block_tokens != 16 && config->block_tokens != 32) {
        return bad(diag, "--kv-block-tokens: takes 16 or 32");
    }
    if (config->batch_max > config->step_tokens) {
        return bad(diag, "--batch-max must not exceed --step-tokens: each running sequence is one row of a step");
    }
    TRY(net_address_check("listen", config->listen, diag));
    TRY(net_address_check("advertise", config->advertise, diag));
    TRY(net_address_check("tcp-listen", config->tcp_listen, diag));
    TRY(net_address_check("metrics-listen", config->metrics_listen, diag));
    TRY(check_cables(config, diag));
    TRY(check_words(config, diag));
    TRY(check_compute(config, diag));
    TRY(check_backend(config, diag));
    TRY(check_cache(config, diag));
    TRY(check_tiers(config, diag));
    int tls = (config->tls_cert != NULL) + (config->tls_key != NULL) + (config->tls_ca != NULL);
    if (tls != 0 && tls != 3) { return bad(diag, "--tls-cert, --tls-key and --tls-ca go together"); }
    return STATUS_OK;
}
