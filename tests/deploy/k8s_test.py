"""The Kubernetes manifests: valid against Kubernetes' own schemas, and true to the binaries.

Needs PyYAML and kubernetes-validate (tests/python/requirements.txt); without them it says so and
passes. There is no kustomize here, so render() below builds each overlay the way kustomize
does, for the few features that ours use; it refuses any other.
"""
import copy
import os
import re
import subprocess
import sys
import unittest

try:
    import kubernetes_validate
    import yaml
except ImportError as missing:
    print(f"SKIPPED: {missing}; pip install -r tests/python/requirements.txt to run this test")
    sys.exit(0)

ROOT = os.getcwd()
K8S = os.path.join(ROOT, "deploy", "k8s")
OVERLAYS = ("cpu", "cpu-autoscaled", "gpu-nvidia", "gpu-nvidia-rdma")
# preStop.sleep is on by default from 1.30 on; the newest that the package knows comes beside it.
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())
BINARIES = {"router": "router/router", "prefill": "prefill_node/prefill_node", "decode": "decode_node/decode_node"}
NOT_KUBERNETES = {"PodMonitor"}  # a resource of the Prometheus operator; checked by hand below


def load(path):
    with open(path, encoding="utf-8") as file:
        return [doc for doc in yaml.safe_load_all(file) if doc]


# ---- a small kustomize ----

KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "sysctls": "name"}
KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images"}


def merge(target, patch, key=None):
    """A strategic merge: maps by key, the lists of KEYS by their element's key."""
    if isinstance(target, dict) and isinstance(patch, dict):
        for name, value in patch.items():
            if value is None:  # takes the field away
                target.pop(name, None)
            else:
                target[name] = merge(target[name], value, name) if name in target else copy.deepcopy(value)
        return target
    if isinstance(target, list) and isinstance(patch, list) and key in KEYS:
        for element in patch:
            same = [i for i, old in enumerate(target) if old[KEYS[key]] == element[KEYS[key]]]
            if same:
                target[same[0]] = merge(target[same[0]], element)
            else:
                target.append(copy.deepcopy(element))
        return target
    return copy.deepcopy(patch)


def apply_patch(docs, entry, folder):
    text = entry.get("patch")
    if text is None:
        with open(os.path.join(folder, entry["path"]), encoding="utf-8") as file:
            text = file.read()
    patch = yaml.safe_load(text)
    target = entry["target"]
    hits = [doc for doc in docs if doc["kind"] == target["kind"]
            and re.fullmatch(target.get("name", ".*"), doc["metadata"]["name"])]
    assert hits, f"{folder}: a patch meets nothing: {target}"
    for doc in hits:
        if isinstance(patch, list):
            for op in patch:
                assert op["op"] == "remove", f"{folder}: {op['op']} is not known here"
                *parents, last = op["path"].strip("/").split("/")
                at = doc
                for parent in parents:
                    at = at[parent]
                del at[last]
        else:
            name = doc["metadata"]["name"]  # the name in a patch is only a placeholder
            merge(doc, patch)
            doc["metadata"]["name"] = name


def render(folder, docs=None):
    """The documents of a kustomization; a component changes those it is given."""
    (custom,) = load(os.path.join(folder, "kustomization.yaml"))
    unknown = set(custom) - KNOWN
    assert not unknown, f"{folder}: {unknown} is not known here"
    docs = [] if docs is None else docs
    for entry in custom.get("resources", []):
        path = os.path.normpath(os.path.join(folder, entry))
        assert os.path.exists(path), f"{folder}/kustomization.yaml names {entry}, which does not exist"
        docs.extend(render(path) if os.path.isdir(path) else load(path))
    for entry in custom.get("components", []):
        path = os.path.normpath(os.path.join(folder, entry))
        assert load(os.path.join(path, "kustomization.yaml"))[0]["kind"] == "Component", f"{entry} is no component"
        render(path, docs)
    for entry in custom.get("patches", []):
        apply_patch(docs, entry, folder)
    for image in custom.get("images", []):
        for doc in docs:
            for container in containers(doc):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return docs


# ---- what the manifests say ----

def containers(doc):
    return doc["spec"]["template"]["spec"]["containers"] if doc["kind"] == "Deployment" else []


def named(docs, kind, name):
    (doc,) = [doc for doc in docs if doc["kind"] == kind and doc["metadata"]["name"] == name]
    return doc


def role_of(deployment):
    return deployment["metadata"]["labels"]["app.kubernetes.io/component"]


def flags_of(container):
    """Flags of a container as the program will see them, from arguments and BATON_ variables."""
    flags = {}
    for word in container.get("args", []):
        name, equals, value = word.removeprefix("--").partition("=")
        assert word.startswith("--") and equals, f"{word} is not --flag=value"
        flags[name] = value
    for entry in container.get("env", []):
        if entry["name"].startswith("BATON_"):
            flags[entry["name"].removeprefix("BATON_").lower().replace("_", "-")] = entry.get("value")
    return flags


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def size_bytes(text):
    """16GiB as our flags write it, 16Gi as Kubernetes does."""
    number, unit = re.fullmatch(r"(\d+)([KMGT])iB?", text).groups()
    return int(number) << 10 * ("KMGT".index(unit) + 1)


def help_flags(role):
    text = subprocess.run([os.path.join(ROOT, BINARIES[role]), "--help"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^  --([a-z0-9-]+)", text, re.M))


def has_rdma(container):
    return any(name.startswith("rdma/") for name in container["resources"]["limits"])


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.overlays = {name: render(os.path.join(K8S, "overlays", name)) for name in OVERLAYS}
        # No overlay has these; every test below sees them.
        for added in (("node-cache",), ("node-cache", "packs-on-host"), ("rdma", "rdma-network", "ucx")):
            docs = render(os.path.join(K8S, "overlays", "cpu"))
            for component in added:
                render(os.path.join(K8S, "components", component), docs)
            cls.overlays[" + ".join(("cpu", *added))] = docs

    def each(self, kind):
        for docs in self.overlays.values():
            for doc in docs:
                if doc["kind"] == kind:
                    yield docs, doc

    def test_every_file_is_used(self):
        """A manifest that no kustomization names is dead, and one that is named exists."""
        used = set()
        for folder, _, files in os.walk(K8S):
            if "kustomization.yaml" not in files:
                continue
            (custom,) = load(os.path.join(folder, "kustomization.yaml"))
            used.add(os.path.join(folder, "kustomization.yaml"))
            for entry in custom.get("resources", []) + [p["path"] for p in custom.get("patches", []) if "path" in p]:
                used.add(os.path.normpath(os.path.join(folder, entry)))
        there = {os.path.join(folder, name) for folder, _, files in os.walk(K8S) for name in files if name.endswith(".yaml")}
        self.assertEqual(there - used, {os.path.join(K8S, "prometheus-adapter", "values.yaml")})

    def test_schemas(self):
        """Every rendered document holds against the strict schemas: no unknown field, no wrong type."""
        checked = 0
        for name, docs in self.overlays.items():
            for doc in docs:
                if doc["kind"] in NOT_KUBERNETES:
                    continue
                for version in VERSIONS:
                    with self.subTest(overlay=name, doc=f"{doc['kind']}/{doc['metadata']['name']}", version=version):
                        kubernetes_validate.validate(doc, version, strict=True)
                        checked += 1
        self.assertGreater(checked, 60)

    def test_schemas_notice_mistakes(self):
        """The check above can fail: a misspelt field and a wrong type are refused."""
        for change in ({"replica": 3}, {"replicas": "three"}):
            doc = copy.deepcopy(named(self.overlays["cpu"], "Deployment", "baton-decode"))
            doc["spec"].update(change)
            with self.assertRaises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(doc, VERSIONS[0], strict=True)

    def test_names_are_unique(self):
        for name, docs in self.overlays.items():
            keys = [(doc["kind"], doc["metadata"]["name"]) for doc in docs]
            self.assertEqual(len(keys), len(set(keys)), name)
            for doc in docs:
                if doc["kind"] != "Namespace":
                    self.assertEqual(doc["metadata"]["namespace"], "baton", doc["metadata"]["name"])

    def test_flags_exist(self):
        """Every flag and BATON_ variable is one of the program; lists do not come from variables."""
        for _, deployment in self.each("Deployment"):
            known = help_flags(role_of(deployment))
            (container,) = containers(deployment)
            self.assertLessEqual(set(flags_of(container)), known)
            variables = {entry["name"] for entry in container["env"]}
            self.assertFalse(variables & {"BATON_PREFILL", "BATON_DECODE"}, "the program ignores these as variables")
            for word in container["args"]:
                for used in re.findall(r"\$\((\w+)\)", word):
                    self.assertIn(used, variables)

    def test_programs_take_the_values(self):
        """The programs themselves parse the arguments: --print-config with each container's."""
        for _, deployment in self.each("Deployment"):
            (container,) = containers(deployment)
            env = {}
            for entry in container["env"]:
                env[entry["name"]] = entry.get("value") or {"POD_IP": "10.0.0.1", "BATON_THREADS": "4"}.get(entry["name"], "pod")
            args = [re.sub(r"\$\((\w+)\)", lambda m: env[m.group(1)], word) for word in container["args"]]
            run = subprocess.run([os.path.join(ROOT, BINARIES[role_of(deployment)]), *args, "--print-config"],
                                 env=env, capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn(f"--model={env['BATON_MODEL']}\n", run.stdout)

    def test_drain_fits_into_the_grace(self):
        for _, deployment in self.each("Deployment"):
            (container,) = containers(deployment)
            wait = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            self.assertGreater(grace, wait + seconds(flags_of(container)["drain-timeout"]))

    def test_ports_meet(self):
        """Listening flags, container ports, services, probes and the router's lists agree."""
        for docs, deployment in self.each("Deployment"):
            role = role_of(deployment)
            (container,) = containers(deployment)
            flags = flags_of(container)
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            self.assertEqual(flags["listen"], f"0.0.0.0:{ports['grpc']}")
            self.assertEqual(flags["metrics-listen"], f"0.0.0.0:{ports['metrics']}")
            if role == "decode":
                self.assertEqual(flags["tcp-listen"], f"0.0.0.0:{ports['kv']}")
            if role != "router":
                self.assertTrue(flags["advertise"].endswith(f":{ports['grpc']}"))
            service = named(docs, "Service", deployment["metadata"]["name"])
            self.assertTrue(matches(service["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"]))
            for port in service["spec"]["ports"]:
                self.assertEqual(port["port"], ports[port["targetPort"]])
                self.assertEqual(port.get("appProtocol"), "kubernetes.io/h2c" if port["name"] == "grpc" else None)
            self.assertEqual(service["spec"].get("clusterIP"), None if role == "router" else "None")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                at = container[probe].get("grpc", container[probe].get("httpGet"))["port"]
                self.assertIn(at, (ports["grpc"], "metrics"))
        router = flags_of(containers(named(self.overlays["cpu"], "Deployment", "baton-router"))[0])
        for role in ("prefill", "decode"):
            service = named(self.overlays["cpu"], "Service", f"baton-{role}")
            self.assertEqual(router[role], f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}")

    def test_selectors_meet(self):
        """Deployments own their pods; budgets, spreads and scalers speak of the same ones."""
        for docs, deployment in self.each("Deployment"):
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            own = deployment["spec"]["selector"]["matchLabels"]
            self.assertTrue(matches(own, labels))
            others = [doc for doc in docs if doc["kind"] == "Deployment" and doc is not deployment]
            self.assertFalse(any(matches(own, other["spec"]["template"]["metadata"]["labels"]) for other in others))
            self.assertEqual(named(docs, "PodDisruptionBudget", deployment["metadata"]["name"])["spec"]["selector"]["matchLabels"], own)
            (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
            self.assertEqual(spread["labelSelector"]["matchLabels"], own)
        scaled = 0
        for docs, scaler in self.each("HorizontalPodAutoscaler"):
            target = named(docs, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
            self.assertNotIn("replicas", target["spec"], "an apply would set the scaler's count back")
            scaled += 1
        self.assertEqual(scaled, 6)

    def test_pods_are_locked_down(self):
        """No pod has a right that it does not need: RDMA's need is to lock memory, and nothing else."""
        for docs, deployment in self.each("Deployment"):
            pod = deployment["spec"]["template"]["spec"]
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertGreater(pod["securityContext"]["runAsUser"], 0)
            self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            (container,) = containers(deployment)
            rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            if has_rdma(container):
                rights["capabilities"]["add"] = ["IPC_LOCK"]
                rights.update(runAsNonRoot=False, runAsUser=0)
                self.assertNotEqual(role_of(deployment), "router")
            self.assertEqual(container["securityContext"], rights)
            self.assertFalse({"hostNetwork", "hostIPC", "hostPID"} & set(pod))
            namespace = named(docs, "Namespace", "baton")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            rdma_here = any(has_rdma(other) for doc in docs for other in containers(doc))
            self.assertEqual(namespace, "privileged" if rdma_here else "restricted")
            for kind in ("requests", "limits"):
                self.assertIn("memory", container["resources"][kind])
            if "uds-dir" in flags_of(container):
                self.assertIn(flags_of(container)["uds-dir"], [mount["mountPath"] for mount in container["volumeMounts"]])
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            self.assertEqual(mounts, {volume["name"] for volume in pod.get("volumes", [])})

    def test_network(self):
        """Only what the design lets speak may: policies, by role and port."""
        docs = self.overlays["cpu"]
        allowed = set()
        for role in BINARIES:
            policy = named(docs, "NetworkPolicy", f"baton-{role}")["spec"]
            self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
            self.assertEqual(policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"], role)
            for rule in policy["ingress"]:
                for peer in rule["from"]:
                    who = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")
                    space = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                    for port in rule["ports"]:
                        allowed.add((who or space or "anyone", role, port["port"]))
        metrics = {("monitoring", role, 9090) for role in BINARIES}
        self.assertEqual(allowed, metrics | {("anyone", "router", 8000), ("router", "prefill", 7000), ("router", "decode", 7000),
                                             ("prefill", "decode", 7000), ("prefill", "decode", 7001)})

    def test_nccl_ports(self):
        """NCCL's ports are those that the kernel of its pods gives out, are open between the pools, both ways, and to nobody else."""
        docs = self.overlays["gpu-nvidia-rdma"]
        first = {named(docs, "NetworkPolicy", f"baton-{role}")["metadata"]["name"] for role in BINARIES}
        added = [doc for doc in docs if doc["kind"] == "NetworkPolicy" and doc["metadata"]["name"] not in first]
        seen = set()
        for policy in added:
            spec = policy["spec"]
            role = spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            (sysctl,) = named(docs, "Deployment", f"baton-{role}")["spec"]["template"]["spec"]["securityContext"]["sysctls"]
            self.assertEqual(sysctl["name"], "net.ipv4.ip_local_port_range")
            least, most = map(int, sysctl["value"].split())
            for way, side in (("ingress", "from"), ("egress", "to")):
                (rule,) = spec[way]
                (peer,) = rule[side]
                self.assertEqual(set(peer), {"podSelector"})
                self.assertEqual(rule["ports"], [{"port": least, "endPort": most, "protocol": "TCP"}])
                seen.add((role, way, peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]))
            (container,) = containers(named(docs, "Deployment", f"baton-{role}"))
            for port in container["ports"]:
                self.assertNotIn(port["containerPort"], range(least, most + 1))
        self.assertEqual(seen, {(role, way, other) for role, other in (("prefill", "decode"), ("decode", "prefill"))
                                for way in ("ingress", "egress")})

    def test_cables(self):
        """A cable that is named is turned on, one that is turned on is named, tcp is there when it fails; no other overlay has it."""
        for name, docs in self.overlays.items():
            for role in ("prefill", "decode"):
                (container,) = containers(named(docs, "Deployment", f"baton-{role}"))
                flags = flags_of(container)
                cables = flags["cables"].split(",")
                self.assertEqual(cables[-1], "tcp")
                self.assertEqual("nccl" in cables, flags.get("nccl") == "on", name)
                self.assertEqual("ucx" in cables, flags.get("ucx", "off") != "off", name)
                self.assertEqual(has_rdma(container), "rdma" in name, name)
                if "nccl" in cables:
                    self.assertEqual(flags["backend"], "cuda")
                    self.assertEqual({mount["mountPath"] for mount in container["volumeMounts"]} & {"/dev/shm"}, {"/dev/shm"})
                annotations = named(docs, "Deployment", f"baton-{role}")["spec"]["template"]["metadata"].get("annotations", {})
                self.assertEqual("k8s.v1.cni.cncf.io/networks" in annotations, "rdma-network" in name)

    def test_overlays_do_what_they_say(self):
        gpu = self.overlays["gpu-nvidia"]
        for role in ("prefill", "decode"):
            (container,) = containers(named(gpu, "Deployment", f"baton-{role}"))
            self.assertEqual(container["resources"]["limits"]["nvidia.com/gpu"], "1")
            self.assertEqual(flags_of(container)["backend"], "cuda")
            self.assertEqual(flags_of(container)["model"], "/models/served")
            self.assertEqual(container["image"], f"baton-{role}:cuda")
        (router,) = containers(named(gpu, "Deployment", "baton-router"))
        self.assertNotIn("nvidia.com/gpu", router["resources"]["limits"])
        self.assertEqual(flags_of(router)["model"], "/models/served")
        self.assertEqual(flags_of(containers(named(self.overlays["cpu"], "Deployment", "baton-router"))[0])["model"], "/models/baton-tiny")
        fallback = render(os.path.join(K8S, "components", "autoscaling-cpu"), render(os.path.join(K8S, "base")))
        scalers = [doc for doc in fallback if doc["kind"] == "HorizontalPodAutoscaler"]
        self.assertEqual({scaler["spec"]["metrics"][0]["resource"]["name"] for scaler in scalers}, {"cpu"})
        for scaler in scalers:
            kubernetes_validate.validate(scaler, VERSIONS[0], strict=True)

    def test_node_cache(self):
        """Packs and the disk tier lie on volumes of their own that are large enough; a router has none."""
        for name, kind in (("cpu + node-cache", "emptyDir"), ("cpu + node-cache + packs-on-host", "hostPath")):
            docs = self.overlays[name]
            for role in ("prefill", "decode"):
                deployment = named(docs, "Deployment", f"baton-{role}")
                (container,) = containers(deployment)
                flags = flags_of(container)
                mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
                self.assertFalse([mount for mount in container["volumeMounts"] if mount.get("readOnly")])
                packs = volumes[mounted[flags["pack-cache"]]]
                self.assertEqual(set(packs), {"name", kind})
                tier = volumes[mounted[os.path.dirname(flags["kv-disk-path"])]]["emptyDir"]
                self.assertNotEqual(tier.get("medium"), "Memory")
                self.assertLess(size_bytes(flags["kv-disk"]), size_bytes(tier["sizeLimit"]))
                on_disk = [volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume
                           and volume["emptyDir"].get("medium") != "Memory"]
                for limit in ("requests", "limits"):
                    self.assertLess(sum(size_bytes(volume["sizeLimit"]) for volume in on_disk),
                                    size_bytes(container["resources"][limit]["ephemeral-storage"]))
                    self.assertIn("memory", container["resources"][limit])
            router = named(docs, "Deployment", "baton-router")
            self.assertEqual(router, named(self.overlays["cpu"], "Deployment", "baton-router"))

    def test_scalers_read_metrics_that_exist(self):
        """A scaler's metric is one that the adapter's rules make of one that the nodes export."""
        (values,) = load(os.path.join(K8S, "prometheus-adapter", "values.yaml"))
        made = {rule["name"]["as"]: rule["seriesQuery"].split("{")[0] for rule in values["rules"]["custom"]}
        with open(os.path.join(ROOT, "node", "node_metrics.c"), encoding="utf-8") as file:
            exported = set(re.findall(r'\{"([a-z_:]+)", ', file.read()))
        for _, scaler in self.each("HorizontalPodAutoscaler"):
            self.assertIn(made[scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]], exported)

    def test_pod_monitor(self):
        for docs, monitor in self.each("PodMonitor"):
            self.assertEqual(set(monitor["spec"]), {"selector", "podTargetLabels", "podMetricsEndpoints"})
            self.assertEqual(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics")
            hits = [doc for doc in docs if doc["kind"] == "Deployment"
                    and matches(monitor["spec"]["selector"]["matchLabels"], doc["spec"]["template"]["metadata"]["labels"])]
            self.assertEqual(len(hits), 3)


if __name__ == "__main__":
    unittest.main()
