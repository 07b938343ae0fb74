# The fixed rules of a generated policy: what each request to the guest may ask for, given `policy_data` (which stands at the end of the policy).
#
# The host is hostile: nothing it says about itself counts. A container is allowed when what it asks for is what one entry of
# `policy_data.containers` says, whatever the host calls it. A decision and its explanation are one thing: `<Name>_reasons` is the set of
# what differs, and a request is allowed when that set is there and empty. So whatever is undefined denies.
package agent_policy

import rego.v1

# --- Values

# An expected value is the value itself, or {"pattern": "^...$"} for what is known only at run time.
fits(expected, got) if expected == got

fits(expected, got) if {
	is_object(expected)
	is_string(got)
	regex.match(expected.pattern, got)
}

# What is true of the value tells whether a field may be missing.
is_optional(expected) if {
	is_object(expected)
	expected.optional == true
}

shown(expected) := expected if not is_object(expected)

shown(expected) := concat("", ["like ", expected.pattern]) if is_object(expected)

reason(name, path, expected, got, rule) := {"container": name, "path": path, "expected": expected, "got": got, "rule": rule}

at(message, path) := value if {
	value := object.get(message, path, null)
} else := null

# One field that must be as expected.
field_differences(name, message, path, prefix, expected, rule) := {r |
	not fits(expected, at(message, path))
	r := reason(name, concat(".", array.concat(prefix, path)), shown(expected), at(message, path), rule)
}

# A list that must have these elements in this order.
list_differences(name, path, expected, got, rule) := union({
	{r |
		some i, value in expected
		i < count(items(got))
		not fits(value, got[i])
		r := reason(name, sprintf("%s[%d]", [path, i]), shown(value), got[i], rule)
	},
	{r |
		not count(expected) == count(items(got))
		r := reason(name, path, [shown(value) | some value in expected], got, rule)
	},
})

# A list whose order does not count: all of `required`, and nothing that is not in `allowed` besides.
set_differences(name, path, required, allowed, got, rule) := union({
	{r |
		not is_list(got)
		r := reason(name, path, required, got, rule)
	},
	{r |
		some value in required
		not value in items(got)
		r := reason(name, path, value, null, rule)
	},
	{r |
		some i, value in items(got)
		not value in required
		not value in allowed
		r := reason(name, sprintf("%s[%d]", [path, i]), "nothing more", value, rule)
	},
})

is_list(value) if is_array(value)

# The elements of a list; none of what is no list, which is told by itself.
items(value) := value if {
	is_array(value)
} else := []

# --- Containers

run_dir := "/run/kata-containers"

# What the host brings file by file, and what the guest makes or mounts: no file call of the host leads there.
volume_pattern := `^/run/kata-containers/volumes/[0-9a-f]{32}$`

mount_pattern := `^/run/kata-containers/sandbox/volumes/[0-9a-f]{32}$`

id_pattern := `^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`

CreateContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": "/pstate/containers", "value": object.union(known_containers, {input.container_id: names})},
	{"op": "add", "path": "/pstate/volumes", "value": object.union(known_volumes, places)},
]} if {
	regex.match(id_pattern, input.container_id)
	fitting := [entry |
		some entry in policy_data.containers

		# What tells most entries apart comes first: the rest takes time.
		count(args_differences(entry)) == 0
		count(container_differences(entry)) == 0
	]
	entry := array.concat([one | some one in fitting; one.name == claimed], fitting)[0]
	names := [one.name | some one in fitting]
	places := {mount.source: declared(entry, mount.destination).volume | some mount in mounts; regex.match(mount_pattern, mount.source)}
}

# Explained by the entry that the host claims to mean, else by the one that differs least.
CreateContainerRequest_reasons := container_differences(nearest_entry)

CreateContainerRequest_reasons := {reason("", "request", "a request of the protocol's form, and a container of the policy", at(input, ["container_id"]), "request")} if not container_differences(nearest_entry)

claimed := object.get(input, ["OCI", "Annotations", "io.kubernetes.cri.container-name"], null)

nearest_entry := [entry | some entry in policy_data.containers; entry.name == claimed][0]

nearest_entry := entry if {
	count([entry | some entry in policy_data.containers; entry.name == claimed]) == 0
	counts := [count(container_differences(entry)) | some entry in policy_data.containers]
	some i, entry in policy_data.containers
	counts[i] == min(counts)
	count([j | some j, number in counts; j < i; number == min(counts)]) == 0
}

container_differences(entry) := union({
	request_differences(entry),
	process_differences(entry, at(input, ["OCI", "Process"]), "OCI.Process"),
	args_differences(entry),
	mounts_differences(entry),
	storages_differences(entry),
	linux_differences(entry),
	devices_differences(entry),
	state_differences(entry),
})

# Everything beside process, mounts, storages and the kernel's settings.
request_differences(entry) := union({
	field_differences(entry.name, input, ["exec_id"], [], at(input, ["container_id"]), "request"),
	field_differences(entry.name, input, ["container_id"], [], {"pattern": id_pattern}, "request"),
	field_differences(entry.name, input, ["string_user"], [], null, "request"),
	field_differences(entry.name, input, ["shared_mounts"], [], [], "request"),
	field_differences(entry.name, input, ["sandbox_pidns"], [], policy_data.pod.share_pid, "namespaces"),
	hostname_differences(entry),
	field_differences(entry.name, input, ["OCI", "Hooks"], [], null, "hooks"),
	field_differences(entry.name, input, ["OCI", "Solaris"], [], null, "request"),
	field_differences(entry.name, input, ["OCI", "Windows"], [], null, "request"),
	field_differences(entry.name, input, ["OCI", "Root", "Readonly"], [], entry.root_readonly, "root"),
	field_differences(entry.name, input, ["OCI", "Root", "Path"], [], rootfs, "root"),
	field_differences(entry.name, input, ["OCI", "Annotations", "io.katacontainers.pkg.oci.container_type"], [], "pod_container", "request"),
	field_differences(entry.name, input, ["OCI", "Annotations", "io.katacontainers.pkg.oci.bundle_path"], [], concat("/", [run_dir, input.container_id]), "request"),
})

# containerd names the pod's host in the sandbox only; others may name it here, too.
hostname_differences(entry) := set() if input.OCI.Hostname == ""

hostname_differences(entry) := field_differences(entry.name, input, ["OCI", "Hostname"], [], policy_data.pod.hostname, "hostname") if not input.OCI.Hostname == ""

mounts := items(at(input, ["OCI", "Mounts"]))

storages := items(at(input, ["storages"]))

rootfs := sprintf("%s/shared/containers/passthrough/%s/rootfs", [run_dir, input.container_id])

# --- What the guest has already, which no later request tells

# The id of a container -> the entries that it may be.
known_containers := object.get(data.pstate, "containers", {})

# The place of an emptyDir or a disk -> the volume's name. What is mounted once is there for all, whatever a later request says that it is.
known_volumes := object.get(data.pstate, "volumes", {})

state_differences(entry) := union({
	{r |
		names := known_containers[input.container_id]
		not entry.name in names
		r := reason(entry.name, "container_id", "an id that no other container has had", input.container_id, "request")
	},
	{r |
		some i, mount in mounts
		regex.match(mount_pattern, mount.source)
		volume := declared(entry, mount.destination).volume
		some place, name in known_volumes
		not same(place == mount.source, name == volume)
		r := reason(entry.name, sprintf("OCI.Mounts[%d].source", [i]), sprintf("the volume %s", [volume]), mount.source, "mounts")
	},
})

may_be(entry) if not known_containers[input.container_id]

may_be(entry) if entry.name in known_containers[input.container_id]

# --- Processes: a container's first one, and those of exec

args_differences(entry) := union({
	list_differences(entry.name, "OCI.Process.Args", entry.process.args, at(input, ["OCI", "Process", "Args"]), "args"),
	field_differences(entry.name, input, ["OCI", "Process", "Terminal"], [], entry.process.terminal, "terminal"),
})

process_differences(entry, process, prefix) := union({
	field_differences(entry.name, process, ["Cwd"], [prefix], entry.process.cwd, "cwd"),
	user_differences(entry, process, prefix),
	env_differences(entry, process, prefix),
	capabilities_differences(entry, process, prefix),
	field_differences(entry.name, process, ["NoNewPrivileges"], [prefix], entry.process.no_new_privileges, "no_new_privileges"),
	field_differences(entry.name, process, ["ApparmorProfile"], [prefix], "", "labels"),
	field_differences(entry.name, process, ["SelinuxLabel"], [prefix], "", "labels"),
})

user_differences(entry, process, prefix) := union({
	field_differences(entry.name, process, ["User", "UID"], [prefix], entry.process.user.uid, "user"),
	field_differences(entry.name, process, ["User", "GID"], [prefix], entry.process.user.gid, "user"),
	field_differences(entry.name, process, ["User", "Username"], [prefix], "", "user"),
	set_differences(entry.name, concat(".", [prefix, "User.AdditionalGids"]), entry.process.user.groups, array.concat(entry.process.user.optional_groups, [0 | entry.process.user.gid == 0]), at(process, ["User", "AdditionalGids"]), "user"),
})

env_name(text) := substring(text, 0, indexof(text, "=")) if indexof(text, "=") > 0

env_value(text) := substring(text, indexof(text, "=") + 1, -1)

# A cluster of many services gives each container hundreds of variables: those that fit are looked at all at once.
env_differences(entry, process, prefix) := set() if env_fits(entry, process)

env_differences(entry, process, prefix) := env_details(entry, process, prefix) if {
	not env_fits(entry, process)
	count(env_details(entry, process, prefix)) > 0
}

env_differences(entry, process, prefix) := {reason(entry.name, concat(".", [prefix, "Env"]), "the variables of the policy", at(process, ["Env"]), "env")} if {
	not env_fits(entry, process)
	count(env_details(entry, process, prefix)) == 0
}

env_fits(entry, process) if {
	is_array(process.Env)

	# Before the values: two of one name are an error there.
	count({env_name(text) | some text in process.Env}) == count(process.Env)
	wanted := entry.process.env
	got := {name: value |
		some text in process.Env
		split := indexof(text, "=")
		split > 0
		name := substring(text, 0, split)
		value := substring(text, split + 1, -1)
	}
	count(got) == count(process.Env)
	count([name | some name, value in got; expected := wanted[name]; expected != value; not fits(expected, value)]) == 0
	count([name | some name, expected in wanted; not got[name]; not is_optional(expected)]) == 0
	others := [line | some name, value in got; not wanted[name]; line := concat("", [name, "=", value, "\n"])]
	regex.match(sprintf("^(?:(?:%s)\n)*$", [concat("|", entry.process.env_patterns)]), concat("", others))
}

env_details(entry, process, prefix) := union({
	{r |
		some i, text in items(at(process, ["Env"]))
		not env_allowed(entry, text)
		r := reason(entry.name, sprintf("%s.Env[%d]", [prefix, i]), env_expected(entry, text), text, "env")
	},
	{r |
		names := {env_name(text) | some text in items(at(process, ["Env"]))}
		some name, expected in entry.process.env
		not is_optional(expected)
		not name in names
		r := reason(entry.name, concat(".", [prefix, "Env"]), concat("=", [name, sprintf("%v", [shown(expected)])]), null, "env")
	},
	{r |
		some i, text in items(at(process, ["Env"]))
		some j, other in items(at(process, ["Env"]))
		j < i
		env_name(other) == env_name(text)
		r := reason(entry.name, sprintf("%s.Env[%d]", [prefix, i]), "each variable once", text, "env")
	},
})

env_allowed(entry, text) if fits(entry.process.env[env_name(text)], env_value(text))

env_allowed(entry, text) if {
	not is_named(entry, env_name(text))
	regex.match(sprintf("^(?:%s)$", [concat("|", entry.process.env_patterns)]), text)
}

is_named(entry, name) if _ = entry.process.env[name]

env_expected(entry, text) := concat("=", [env_name(text), sprintf("%v", [shown(entry.process.env[env_name(text)])])]) if is_named(entry, env_name(text))

env_expected(entry, text) := "no such variable" if not is_named(entry, env_name(text))

capabilities_differences(entry, process, prefix) := set() if entry.privileged

capabilities_differences(entry, process, prefix) := union({
	{r |
		some kind in ["Bounding", "Effective", "Permitted"]
		some r in set_differences(entry.name, sprintf("%s.Capabilities.%s", [prefix, kind]), entry.process.capabilities, [], at(process, ["Capabilities", kind]), "capabilities")
	},
	{r |
		some kind in ["Inheritable", "Ambient"]
		some r in set_differences(entry.name, sprintf("%s.Capabilities.%s", [prefix, kind]), [], [c | some c in entry.process.capabilities; kind == "Inheritable"], at(process, ["Capabilities", kind]), "capabilities")
	},
}) if not entry.privileged

# --- Mounts

# What every container has: destination -> its form. Options in `may` come with some versions of containerd.
system_mounts := {
	"/proc": {"type": "proc", "source": "proc", "must": ["nosuid", "noexec", "nodev"], "may": []},
	"/dev": {"type": "tmpfs", "source": "tmpfs", "must": ["nosuid", "mode=755", "size=65536k"], "may": ["strictatime", "noexec"]},
	"/dev/pts": {"type": "devpts", "source": "devpts", "must": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"], "may": ["gid=5"]},
	"/dev/mqueue": {"type": "mqueue", "source": "mqueue", "must": ["nosuid", "noexec", "nodev"], "may": []},
	"/sys": {"type": "sysfs", "source": "sysfs", "must": ["nosuid", "noexec", "nodev"], "may": ["ro", "rw"]},
	"/sys/fs/cgroup": {"type": "cgroup", "source": "cgroup", "must": ["nosuid", "noexec", "nodev"], "may": ["relatime", "ro", "rw"]},
	"/dev/shm": {"type": "bind", "source": "/run/kata-containers/sandbox/shm", "must": ["rbind"], "may": []},
}

# In a container that is not privileged these are read-only.
read_only_system := ["/sys", "/sys/fs/cgroup"]

mounts_differences(entry) := union({
	{r |
		not is_list(at(input, ["OCI", "Mounts"]))
		r := reason(entry.name, "OCI.Mounts", "a list", at(input, ["OCI", "Mounts"]), "mounts")
	},
	{r |
		some i, mount in mounts
		some r in mount_differences(entry, mount, sprintf("OCI.Mounts[%d]", [i]))
	},
	{r |
		some i, mount in mounts
		some j, other in mounts
		j < i
		hides(mount.destination, other.destination)
		r := reason(entry.name, sprintf("OCI.Mounts[%d].destination", [i]), "a place that hides no earlier mount", mount.destination, "mounts")
	},
	{r |
		places := [mount.destination | some mount in mounts]
		some wanted in entry.mounts
		not is_optional(wanted)
		not wanted.destination in places
		r := reason(entry.name, "OCI.Mounts", wanted.destination, null, "mounts")
	},
	{r |
		places := [mount.destination | some mount in mounts]
		some destination in ["/proc", "/dev", "/sys"]
		not destination in places
		r := reason(entry.name, "OCI.Mounts", destination, null, "mounts")
	},
	volumes_differences(entry),
})

hides(place, earlier) if place == earlier

hides(place, earlier) if startswith(earlier, concat("", [trim_right(place, "/"), "/"]))

declared(entry, destination) := [wanted | some wanted in entry.mounts; wanted.destination == destination][0]

mount_differences(entry, mount, path) := declared_differences(entry, declared(entry, mount.destination), mount, path)

mount_differences(entry, mount, path) := system_differences(entry, system_mounts[mount.destination], mount, path) if not declared(entry, mount.destination)

mount_differences(entry, mount, path) := {reason(entry.name, concat(".", [path, "destination"]), "no such mount", at(mount, ["destination"]), "mounts")} if {
	not declared(entry, mount.destination)
	not system_mounts[mount.destination]
}

system_differences(entry, form, mount, path) := union({
	type_differences(entry, mount, path, form.type),
	field_differences(entry.name, mount, ["source"], [path], form.source, "mounts"),
	set_differences(entry.name, concat(".", [path, "options"]), form.must, form.may, at(mount, ["options"]), "mounts"),
	{r |
		not entry.privileged
		mount.destination in read_only_system
		not is_read_only(mount.options)
		r := reason(entry.name, concat(".", [path, "options"]), "ro", mount.options, "mounts")
	},
})

# Of two that contradict each other the last one counts.
is_read_only(options) if {
	"ro" in options
	not "rw" in options
}

access_options(access) := [access] if access in ["ro", "rw"]

access_options("either") := []

free_options(access) := [] if access in ["ro", "rw"]

free_options("either") := ["ro", "rw"]

# Kata's agent calls the field `type_`, since `type` is a word of its language.
type_of(message) := object.get(message, "type_", at(message, ["type"]))

type_differences(entry, mount, path, expected) := {r |
	not type_of(mount) == expected
	r := reason(entry.name, concat(".", [path, "type"]), expected, type_of(mount), "mounts")
}

# How a mount is bound says nothing of what is in it.
bind_options := ["rbind", "bind", "rprivate", "private"]

declared_differences(entry, wanted, mount, path) := union({
	type_differences(entry, mount, path, "bind"),
	{r |
		not source_fits(wanted, at(mount, ["source"]))
		r := reason(entry.name, concat(".", [path, "source"]), sprintf("a place for %v", [wanted.kinds]), at(mount, ["source"]), "mounts")
	},
	set_differences(entry.name, concat(".", [path, "options"]), access_options(wanted.access), array.concat(bind_options, free_options(wanted.access)), [option | some option in items(at(mount, ["options"])); not startswith(option, "X-snp.sub=")], "mounts"),
	{r |
		subs := [substring(option, count("X-snp.sub="), -1) | some option in mount.options; startswith(option, "X-snp.sub=")]
		not sub_fits(wanted, subs)
		r := reason(entry.name, concat(".", [path, "options"]), concat("", ["X-snp.sub=", sprintf("%v", [shown(wanted.sub)])]), mount.options, "mounts")
	},
})

# Where what kind of mount lies in the guest (docs/contracts.md).
source_fits(wanted, source) if {
	some kind in wanted.kinds
	kind_fits(kind, source)
}

kind_fits("file", source) if {
	startswith(source, sprintf("%s/snp/%s/", [run_dir, input.container_id]))
	regex.match(`^[0-9]{1,4}$`, trim_prefix(source, sprintf("%s/snp/%s/", [run_dir, input.container_id])))
}

kind_fits("own-copy", source) if {
	startswith(source, sprintf("%s/snp/%s/", [run_dir, input.container_id]))
	regex.match(`^[0-9a-f]{32}$`, trim_prefix(source, sprintf("%s/snp/%s/", [run_dir, input.container_id])))
}

kind_fits("config", source) if {
	regex.match(volume_pattern, source)
	not has_storage(source)
}

kind_fits("copy", source) if {
	regex.match(volume_pattern, source)
	not has_storage(source)
}

kind_fits(kind, source) if {
	kind in ["memory", "scratch", "huge", "disk"]
	regex.match(mount_pattern, source)
	some storage in storages
	storage.mount_point == source
	count(volume_storage_problems(kind, storage)) == 0
}

has_storage(source) if {
	some storage in storages
	storage.mount_point == source
}

# A file is brought by itself: then there is nothing below it.
sub_fits(wanted, subs) if {
	count(subs) == 0
	fits(wanted.sub, "")
}

sub_fits(wanted, subs) if {
	count(subs) == 0
	some kind in wanted.kinds
	kind in ["file", "own-copy", "copy"]
}

sub_fits(wanted, subs) if {
	count(subs) == 1
	fits(wanted.sub, subs[0])
}

# Two mounts of one volume are of one thing, those of two are of two.
volumes_differences(entry) := {r |
	volumes := [{"at": i, "volume": declared(entry, mount.destination).volume, "source": mount.source} |
		some i, mount in mounts
		some pattern in [volume_pattern, mount_pattern]
		regex.match(pattern, mount.source)
	]
	count({volume.volume | some volume in volumes}) + count({volume.source | some volume in volumes}) != 2 * count({[volume.volume, volume.source] | some volume in volumes})
	some volume in volumes
	some other in volumes
	other.at < volume.at
	not same(other.volume == volume.volume, other.source == volume.source)
	r := reason(entry.name, sprintf("OCI.Mounts[%d].source", [volume.at]), sprintf("the volume %s", [volume.volume]), volume.source, "mounts")
}

same(a, b) if a == b

# --- Storages

scratch_dir := "/run/kata-containers/sandbox/scratch"

storages_differences(entry) := union({
	{r |
		not is_list(at(input, ["storages"]))
		r := reason(entry.name, "storages", "a list", at(input, ["storages"]), "storages")
	},
	layers_differences(entry),
	{r |
		some i, storage in storages
		i >= count(entry.layers)
		not storage_allowed(entry, storage)
		r := reason(entry.name, sprintf("storages[%d]", [i]), "no such storage", storage, "storages")
	},
})

layers_differences(entry) := union({
	{r |
		some i, layer in entry.layers
		not storages[i]
		r := reason(entry.name, "storages", sprintf("layer %d with the root hash %s", [i + 1, layer.root_hash]), null, "layers")
	},
	{r |
		some i, layer in entry.layers
		storage := storages[i]
		some r in list_differences(entry.name, sprintf("storages[%d].options", [i]), layer_options(layer, i + 1), storage.options, "layers")
	},
	{r |
		some i, _ in entry.layers
		some field, expected in {"driver": "blk", "fstype": "erofs", "mount_point": rootfs, "driver_options": [], "fs_group": null, "shared": false}
		some r in field_differences(entry.name, storages[i], [field], [sprintf("storages[%d]", [i])], expected, "layers")
	},
	{r |
		some i, _ in entry.layers
		some r in field_differences(entry.name, storages[i], ["source"], [sprintf("storages[%d]", [i])], {"pattern": device_pattern}, "layers")
	},
	{r |
		some i, _ in entry.layers
		not storages[i].source == storages[0].source
		r := reason(entry.name, sprintf("storages[%d].source", [i]), at(input, ["storages", 0, "source"]), at(input, ["storages", i, "source"]), "layers")
	},
})

device_pattern := `^(?:[0-9a-f]{2}|[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])$`

layer_options(layer, number) := [
	"ro",
	"X-kata.overlay-lower",
	"X-kata.multi-layer=true",
	"X-kata.gpt-partitioned=true",
	sprintf("X-kata.partition-number=%d", [number]),
	"X-kata.dmverity-enabled=true",
	sprintf("X-kata.dmverity.roothash=%s", [layer.root_hash]),
	sprintf("X-kata.dmverity.hashoffset=%d", [layer.data_bytes]),
	"X-kata.dmverity.no-superblock=true",
	sprintf("X-kata.dmverity.salt=%s", [layer.salt]),
	"X-kata.dmverity.blocksize=4096",
	"X-kata.dmverity.hashsize=4096",
	"X-kata.dmverity.algorithm=sha256",
	"X-kata.dmverity.hashtype=1",
]

# The writable layer, in the pod's encrypted disk.
storage_allowed(entry, storage) if {
	storage.driver == "blk"
	storage.source == scratch_dir
	storage.fstype == "btrfs"
	storage.mount_point == rootfs
	storage.driver_options == []
	storage.fs_group == null
	storage.shared == false
	storage.options == ["rw", "X-kata.overlay-upper", "X-kata.multi-layer=true", concat("", ["X-snp.in=", scratch_dir])]
}

# Huge pages within the container's limits.
storage_allowed(entry, storage) if {
	storage.driver == "snp.hugepages"
	storage.source == "2097152"
	storage.fstype == "hugetlbfs"
	storage.mount_point == sprintf("%s/snp/%s/hugepages", [run_dir, input.container_id])
	storage.driver_options == []
	storage.shared == false
	count([option | some option in storage.options; not regex.match(`^size=[0-9]+$`, option)]) == 0
}

# A volume's, which a mount of the container has for its source.
storage_allowed(entry, storage) if {
	regex.match(mount_pattern, storage.mount_point)
	some mount in mounts
	mount.source == storage.mount_point
	some kind in declared(entry, mount.destination).kinds
	count(volume_storage_problems(kind, storage)) == 0
	count([1 | some other in storages; other.mount_point == storage.mount_point]) == 1
}

volume_forms := {
	"memory": {"driver": "ephemeral", "driver_options": [], "source": `^tmpfs$`, "fstype": `^tmpfs$`, "options": `^(?:size=[0-9]+|mode=[0-7]{1,4}|uid=[0-9]+|gid=[0-9]+)$`},
	"huge": {"driver": "ephemeral", "driver_options": [], "source": `^nodev$`, "fstype": `^hugetlbfs$`, "options": `^(?:pagesize=2097152|size=[0-9]+|mode=[0-7]{1,4}|uid=[0-9]+|gid=[0-9]+|X-snp\.reserved)$`},
	"scratch": {"driver": "local", "driver_options": [], "source": `^local$`, "fstype": `^local$`, "options": `^(?:mode=[0-7]{1,4}|uid=[0-9]+|fsgid=[0-9]+|X-snp\.in=/run/kata-containers/sandbox/scratch)$`},
	"own": {"driver": "blk", "driver_options": ["encryption_key=ephemeral", "create_filesystem"], "source": device_pattern, "fstype": `^btrfs$`, "options": `^(?:mode=[0-7]{1,4}|uid=[0-9]+|fsgid=[0-9]+)$`},
	"disk": {"driver": "blk", "driver_options": [], "source": device_pattern, "fstype": `^(?:ext4|xfs|erofs)$`, "options": `^[a-z][a-z0-9_=.-]*$`},
}

# An emptyDir is a folder of the pod's writable disk, or has a disk of its own, which the guest encrypts with a key that it makes.
form_of(kind, storage) := "own" if {
	kind == "scratch"
	storage.driver == "blk"
} else := kind

volume_storage_problems(kind, storage) := problems if {
	form := volume_forms[form_of(kind, storage)]
	problems := union({
		{field | some field in ["driver", "driver_options"]; not storage[field] == form[field]},
		{"shared" | not storage.shared == false},
		{field |
			some field in ["source", "fstype"]
			not regex.match(form[field], storage[field])
		},
		{option |
			some option in items(at(storage, ["options"]))
			not regex.match(form.options, option)
		},
	})
}

# --- Devices

# Character devices that mean the same in every kernel. A name stands for its own numbers only: an urandom that is zero would give keys away.
known_nodes := {
	"/dev/null": [1, 3],
	"/dev/zero": [1, 5],
	"/dev/full": [1, 7],
	"/dev/random": [1, 8],
	"/dev/urandom": [1, 9],
	"/dev/kmsg": [1, 11],
	"/dev/tty": [5, 0],
	"/dev/console": [5, 1],
	"/dev/ptmx": [5, 2],
	"/dev/hwrng": [10, 183],
	"/dev/net/tun": [10, 200],
	"/dev/fuse": [10, 229],
}

# Those, and any pty.
plain_devices := array.concat([numbers | some numbers in known_nodes], [[136, -1]])

node_place := `^/dev/(?:[A-Za-z0-9_][A-Za-z0-9_.:+-]*/)*[A-Za-z0-9_][A-Za-z0-9_.:+-]*$`

devices_differences(entry) := union({
	{r |
		some r in set_differences(entry.name, "devices", entry.devices, [], [device.container_path | some device in items(at(input, ["devices"]))], "devices")
	},
	{r |
		some i, device in items(at(input, ["devices"]))
		not device_allowed(device)
		r := reason(entry.name, sprintf("devices[%d]", [i]), "a disk of the node", device, "devices")
	},
	{r |
		some i, device in items(at(input, ["OCI", "Linux", "Devices"]))
		not node_allowed(entry, device)
		r := reason(entry.name, sprintf("OCI.Linux.Devices[%d]", [i]), "no such device", device, "devices")
	},
	{r |
		not entry.privileged
		some i, rule in items(at(input, ["OCI", "Linux", "Resources", "Devices"]))
		not rule_allowed(entry, rule)
		r := reason(entry.name, sprintf("OCI.Linux.Resources.Devices[%d]", [i]), "no such permission", rule, "devices")
	},
})

device_allowed(device) if {
	type_of(device) == "blk"
	device.vm_path == ""
	regex.match(device_pattern, device.id)
}

node_allowed(entry, device) if {
	device.Type in ["c", "u"]
	known_nodes[device.Path] == [device.Major, device.Minor]
}

# Any other device, but in its own place.
node_allowed(entry, device) if {
	entry.privileged
	not known_nodes[device.Path]
	regex.match(node_place, device.Path)
}

node_allowed(entry, device) if {
	device.Type == "b"
	device.Path in entry.devices
}

rule_allowed(entry, rule) if not rule.Allow

rule_allowed(entry, rule) if {
	rule.Type == "c"
	[rule.Major, rule.Minor] in plain_devices
}

# To make a node is not to open it.
rule_allowed(entry, rule) if rule.Access == "m"

rule_allowed(entry, rule) if {
	rule.Type == "b"
	count(entry.devices) > 0
	rule.Major >= 0
	rule.Minor >= 0
}

# --- The kernel's settings

# containerd 2 gives these to every pod.
default_sysctls := {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}

guest_namespaces := ["ipc", "uts", "mount"]

linux_differences(entry) := union({
	{r |
		some field, expected in {"UIDMappings": [], "GIDMappings": [], "RootfsPropagation": "", "MountLabel": "", "IntelRdt": null, "CgroupsPath": concat("/", ["/snp", input.container_id])}
		some r in field_differences(entry.name, input, ["OCI", "Linux", field], [], expected, "linux")
	},
	sysctl_differences(entry),
	{r |
		some i, namespace in items(at(input, ["OCI", "Linux", "Namespaces"]))
		not namespace_allowed(namespace)
		r := reason(entry.name, sprintf("OCI.Linux.Namespaces[%d]", [i]), "one of the guest's own", namespace, "namespaces")
	},
	{r |
		some type in guest_namespaces
		not type in [namespace.Type | some namespace in items(at(input, ["OCI", "Linux", "Namespaces"]))]
		r := reason(entry.name, "OCI.Linux.Namespaces", type, null, "namespaces")
	},
	seccomp_differences(entry),
	seccomp_lies(entry),
	paths_differences(entry, "MaskedPaths", entry.masked_paths),
	paths_differences(entry, "ReadonlyPaths", entry.readonly_paths),
})

namespace_allowed(namespace) if {
	namespace.Type in guest_namespaces
	namespace.Path == ""
}

sysctl_differences(entry) := union({
	{r |
		some name, value in object.union({}, at(input, ["OCI", "Linux", "Sysctl"]))
		not sysctl_allowed(entry, name, value)
		r := reason(entry.name, sprintf("OCI.Linux.Sysctl[%q]", [name]), object.get(entry.sysctls, name, "no such setting"), value, "sysctls")
	},
	{r |
		some name, value in entry.sysctls
		not input.OCI.Linux.Sysctl[name]
		r := reason(entry.name, sprintf("OCI.Linux.Sysctl[%q]", [name]), value, null, "sysctls")
	},
})

sysctl_allowed(entry, name, value) if entry.sysctls[name] == value

sysctl_allowed(entry, name, value) if {
	not entry.sysctls[name]
	default_sysctls[name] == value
}

# The profile of the runtime differs between versions; what counts is that there is one, and that it denies what it does not name.
seccomp_differences(entry) := set() if entry.seccomp == "any"

seccomp_differences(entry) := {r |
	not denies_by_default
	r := reason(entry.name, "OCI.Linux.Seccomp.DefaultAction", "an action that denies", at(input, ["OCI", "Linux", "Seccomp", "DefaultAction"]), "seccomp")
} if entry.seccomp == "required"

# The error 0 is none: the call is not made, and the program is told that it was (setuid, fsync). The kernel's errors end at 4095.
seccomp_lies(entry) := {r |
	some i, rule in items(at(input, ["OCI", "Linux", "Seccomp", "Syscalls"]))
	number := at(rule, ["ErrnoRet", "errnoret"])
	number != null
	not is_error(number)
	r := reason(entry.name, sprintf("OCI.Linux.Seccomp.Syscalls[%d].ErrnoRet", [i]), "the number of an error", number, "seccomp")
}

is_error(number) if {
	number > 0
	number < 4096
}

denies_by_default if input.OCI.Linux.Seccomp.DefaultAction in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"]

# No dots, and of /proc no folder of a process: those lead to the root file system.
kernel_path := `^/(?:proc/[a-z_-]+|sys(?:/[A-Za-z0-9_-]+)+)$`

# More may be hidden than asked for, but only of the kernel's files: a program's own must be seen.
paths_differences(entry, field, expected) := set() if entry.privileged

paths_differences(entry, field, expected) := union({
	{r |
		some path in expected
		not path in items(at(input, ["OCI", "Linux", field]))
		r := reason(entry.name, sprintf("OCI.Linux.%s", [field]), path, null, "paths")
	},
	{r |
		some i, path in items(at(input, ["OCI", "Linux", field]))
		not regex.match(kernel_path, path)
		r := reason(entry.name, sprintf("OCI.Linux.%s[%d]", [field, i]), "no such path", path, "paths")
	},
}) if not entry.privileged

# --- The sandbox

CreateSandboxRequest if count(CreateSandboxRequest_reasons) == 0

shm_options := ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"]

CreateSandboxRequest_reasons := union({
	field_differences("", input, ["hostname"], [], policy_data.pod.hostname, "hostname"),
	field_differences("", input, ["guest_hook_path"], [], "", "sandbox"),
	field_differences("", input, ["kernel_modules"], [], [], "sandbox"),
	field_differences("", input, ["sandbox_pidns"], [], false, "namespaces"),
	{r |
		not is_list(at(input, ["storages"]))
		r := reason("", "storages", "a list", at(input, ["storages"]), "sandbox")
	},
	{r |
		some i, storage in storages
		not sandbox_storage_allowed(storage)
		r := reason("", sprintf("storages[%d]", [i]), "no such storage", storage, "sandbox")
	},
})

sandbox_storage_allowed(storage) if {
	storage.driver == "ephemeral"
	storage.fstype == "tmpfs"
	storage.mount_point == "/run/kata-containers/sandbox/shm"
	storage.options == shm_options
	storage.driver_options == []
}

# The pod's writable disk: with a key that the guest makes and forgets, or it would be the host's to read.
sandbox_storage_allowed(storage) if {
	storage.driver == "blk"
	storage.fstype == "btrfs"
	storage.mount_point == scratch_dir
	storage.options == ["X-snp.background"]
	storage.driver_options == ["encryption_key=ephemeral", "create_filesystem"]
	regex.match(device_pattern, storage.source)
}

# --- The network is the host's, but for the guest's loopback

# Said by what is allowed, so that an address of another form is none of these.
outside(address) if {
	regex.match(`^[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?:/[0-9]{1,2})?$`, address)
	not startswith(address, "127.")
}

outside(address) if regex.match(`^[1-9a-fA-F][0-9a-fA-F]{0,3}:[0-9a-fA-F:.]{1,41}(?:/[0-9]{1,3})?$`, address)

UpdateInterfaceRequest if count(UpdateInterfaceRequest_reasons) == 0

UpdateInterfaceRequest_reasons := union({
	{r |
		some field in ["name", "device"]
		not regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`, object.get(input, ["interface", field], ""))
		r := reason("", concat(".", ["interface", field]), "a name", at(input, ["interface", field]), "network")
	},
	{r |
		some field in ["name", "device"]
		input.interface[field] == "lo"
		r := reason("", concat(".", ["interface", field]), "an interface of the host", "lo", "network")
	},
	# By this the guest finds the interface, and the loopback's is all zeros.
	{r |
		not is_hardware_address(at(input, ["interface", "hwAddr"]))
		r := reason("", "interface.hwAddr", "the address of an interface of the host", at(input, ["interface", "hwAddr"]), "network")
	},
	{r |
		some i, address in items(at(input, ["interface", "IPAddresses"]))
		not outside(at(address, ["address"]))
		r := reason("", sprintf("interface.IPAddresses[%d].address", [i]), "no address of the loopback", at(address, ["address"]), "network")
	},
})

is_hardware_address(text) if {
	regex.match(`^[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}$`, text)
	text != "00:00:00:00:00:00"
}

UpdateRoutesRequest if count(UpdateRoutesRequest_reasons) == 0

UpdateRoutesRequest_reasons := union({
	{r |
		not is_list(at(input, ["routes", "Routes"]))
		r := reason("", "routes.Routes", "a list", at(input, ["routes", "Routes"]), "network")
	},
	{r |
		some i, route in items(at(input, ["routes", "Routes"]))
		not route_allowed(route)
		r := reason("", sprintf("routes.Routes[%d]", [i]), "a route that leaves the loopback alone", route, "network")
	},
})

route_allowed(route) if {
	at(route, ["device"]) != "lo"
	destination_allowed(at(route, ["dest"]))
}

destination_allowed(dest) if dest in ["", "default", "0.0.0.0/0", "::/0"]

# A shorter prefix may hold the loopback's addresses.
destination_allowed(dest) if {
	outside(dest)
	not regex.match(`/[0-7]$`, dest)
}

AddARPNeighborsRequest := true

ListInterfacesRequest := true

ListRoutesRequest := true

# --- Files that the host brings

file_pattern := `^/run/kata-containers/snp/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}/[0-9]{1,4}$`

# S_IFREG with any permissions.
is_plain_file(mode) if {
	mode >= 32768
	mode < 36864
}

CopyFileRequest if count(CopyFileRequest_reasons) == 0

CopyFileRequest_reasons := union({
	{r |
		not regex.match(file_pattern, object.get(input, ["path"], ""))
		r := reason("", "path", "a file of a container's mount", at(input, ["path"]), "files")
	},
	{r |
		not is_plain_file(input.file_mode)
		r := reason("", "file_mode", "a plain file", at(input, ["file_mode"]), "files")
	},
})

# A file that is mounted writable may hold what the container has written: its termination message.
ReadFileRequest if count(ReadFileRequest_reasons) == 0

ReadFileRequest_reasons := union({
	switched("termination_message", "path", at(input, ["path"]), "--allow-termination-message"),
	{r |
		policy_data.allow.termination_message
		not regex.match(file_pattern, object.get(input, ["path"], ""))
		r := reason("", "path", "a file of a container's mount", at(input, ["path"]), "files")
	},
})

own_volume_pattern := `^/run/kata-containers/(?:volumes|snp/[A-Za-z0-9][A-Za-z0-9_.-]{0,127})/[0-9a-f]{32}$`

volume_reasons(option) := union({
	{r |
		not policy_data.pod.copies
		r := reason("", "volume", "none: no volume of the pod is brought by the host", at(input, ["volume"]), "volumes")
	},
	{r |
		policy_data.pod.copies
		not regex.match(own_volume_pattern, object.get(input, ["volume"], ""))
		r := reason("", "volume", "a volume of the pod", at(input, ["volume"]), "volumes")
	},
})

ChangeRequest if count(ChangeRequest_reasons) == 0

ChangeRequest_reasons := volume_reasons("")

ListRequest if count(ListRequest_reasons) == 0

ListRequest_reasons := volume_reasons("")

# --- What lets the host look in

# Reasons of a request that is allowed only when the policy was asked to.
switched(name, path, got, option) := {r |
	not policy_data.allow[name] == true
	r := reason("", path, sprintf("none: the policy was generated without %s", [option]), got, name)
}

ExecProcessRequest if count(ExecProcessRequest_reasons) == 0

ExecProcessRequest_reasons := {reason("", "process.Args", "none: the policy was generated without --allow-exec", at(input, ["process", "Args"]), "exec")} if count(policy_data.allow.exec) == 0

ExecProcessRequest_reasons := {reason("", "container_id", "a container in which commands may be run", at(input, ["container_id"]), "exec")} if {
	count(policy_data.allow.exec) > 0
	count(exec_commands) == 0
}

ExecProcessRequest_reasons := {reason("", "process.Args", {"one of": [[shown(word) | some word in command.args] | some command in exec_commands]}, at(input, ["process", "Args"]), "exec")} if {
	count(exec_commands) > 0
	count(exec_containers) == 0
}

ExecProcessRequest_reasons := set() if {
	count(policy_data.allow.exec) > 0
	count(exec_fitting) > 0
}

ExecProcessRequest_reasons := exec_differences(exec_containers[0]) if {
	count(exec_containers) > 0
	count(exec_fitting) == 0
}

# Commands that may be run in this container.
exec_commands := [command |
	some command in policy_data.allow.exec
	count([1 | some entry in policy_data.containers; command.container in ["", entry.name]; may_be(entry)]) > 0
]

# Entries that this container may be, and in which the command may be run.
exec_containers := [entry |
	some entry in policy_data.containers
	may_be(entry)
	some command in policy_data.allow.exec
	command.container in ["", entry.name]
	command_fits(command)
]

command_fits(command) if command.any == true

command_fits(command) if {
	not command.any
	count(list_differences("", "", command.args, at(input, ["process", "Args"]), "exec")) == 0
}

exec_fitting := [entry.name |
	some entry in exec_containers
	count(exec_differences(entry)) == 0
]

exec_differences(entry) := union({
	process_differences(entry, at(input, ["process"]), "process"),
	field_differences(entry.name, input, ["string_user"], [], null, "exec"),
})

ReadStreamRequest if count(ReadStreamRequest_reasons) == 0

ReadStreamRequest_reasons := switched("logs", "container_id", at(input, ["container_id"]), "--allow-logs")

WriteStreamRequest if count(WriteStreamRequest_reasons) == 0

WriteStreamRequest_reasons := switched("stdin", "container_id", at(input, ["container_id"]), "--allow-stdin")

ForwardPortRequest if count(ForwardPortRequest_reasons) == 0

ForwardPortRequest_reasons := {r |
	not input.port in policy_data.allow.ports
	r := reason("", "port", policy_data.allow.ports, at(input, ["port"]), "ports")
}

# --- What tells the host nothing and changes nothing that is measured

StartContainerRequest := true

RemoveContainerRequest := true

WaitProcessRequest := true

SignalProcessRequest := true

StatsContainerRequest := true

UpdateContainerRequest := true

PauseContainerRequest := true

ResumeContainerRequest := true

TtyWinResizeRequest := true

CloseStdinRequest := true

OnlineCPUMemRequest := true

GuestDetailsRequest := true

GetOOMEventRequest := true

NextDamageRequest := true

ContainerDamageRequest := true

DestroySandboxRequest := true

CheckRequest := true

# --- What no pod needs

never(path) := {reason("", path, "none: no pod has a use for it", at(input, [path]), "never")}

SetPolicyRequest := false

SetPolicyRequest_reasons := {reason("", "policy", "none: a pod's policy never changes", "a policy", "never")}

BindPolicyRequest := false

BindPolicyRequest_reasons := {reason("", "initdata", "none: a pod's policy never changes", "an initdata", "never")}

UpdateEphemeralMountsRequest := false

UpdateEphemeralMountsRequest_reasons := never("storages")

GetDiagnosticDataRequest := false

GetDiagnosticDataRequest_reasons := never("log_type")

GetMetricsRequest := false

GetMetricsRequest_reasons := never("request")

GetIPTablesRequest := false

GetIPTablesRequest_reasons := never("is_ipv6")

SetIPTablesRequest := false

SetIPTablesRequest_reasons := never("data")

MemHotplugByProbeRequest := false

MemHotplugByProbeRequest_reasons := never("memHotplugProbeAddr")

ReseedRandomDevRequest := false

ReseedRandomDevRequest_reasons := never("data")

SetGuestDateTimeRequest := false

SetGuestDateTimeRequest_reasons := never("Sec")

AddSwapRequest := false

AddSwapRequest_reasons := never("PCIPath")

AddSwapPathRequest := false

AddSwapPathRequest_reasons := never("path")

VolumeStatsRequest := false

VolumeStatsRequest_reasons := never("volume_guest_path")

ResizeVolumeRequest := false

ResizeVolumeRequest_reasons := never("volume_guest_path")

RemoveStaleVirtiofsShareMountsRequest := false

RemoveStaleVirtiofsShareMountsRequest_reasons := never("request")

MemAgentMemcgConfig := false

MemAgentMemcgConfig_reasons := never("disabled")

MemAgentCompactConfig := false

MemAgentCompactConfig_reasons := never("disabled")
