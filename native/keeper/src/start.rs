//! `start`: finds or makes the pod's keeper and prints its address.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{self, FILE_VARIABLE};
use crate::containerd::{self, Input};
use crate::detached::Detached;
use crate::flags::Flags;
use crate::pod::{self, Member, Places};
use crate::snpd::variable;
use crate::sys;

const MAX_INPUT_BYTES: u64 = 4 << 20;
const INPUT_DEADLINE: Duration = Duration::from_secs(2);

/// Everything that `start` was told, from the flags, the environment and the standard input.
struct Call {
    id: String,
    namespace: String,
    address: String,
    ttrpc_address: String,
    publish_binary: PathBuf,
    bundle: PathBuf,
    config_file: Option<PathBuf>,
    input: Input,
}

/// Runs `start`; the result is what goes to standard output.
///
/// # Errors
/// A text for the user, which names the thing and the remedy.
pub fn run(flags: &Flags) -> Result<Vec<u8>, String> {
    let call = Call::gather(flags)?;
    let places = Places::new(config::state_dir(call.config_file.as_deref())?);
    let member = pod::member(&call.bundle)?;
    let pod_id = match &member {
        Member::Pod => &call.id,
        Member::Container(pod) => pod,
    };
    let key = pod::key(&call.address, &call.namespace, pod_id);
    let socket = places.keeper_socket(&key)?;
    write_address(&call.bundle, &format!("unix://{}", socket.display()))?;
    match member {
        Member::Pod => begin(&call, &places, &key, &socket)?,
        Member::Container(_) => join(&call.id, pod_id, &socket)?,
    }
    let max_version = std::env::var("MAX_SHIM_VERSION").ok();
    let dialect = containerd::dialect(call.input.bootstrap, max_version.as_deref(), &call.publish_binary);
    Ok(containerd::answer(dialect, &socket))
}

impl Call {
    fn gather(flags: &Flags) -> Result<Call, String> {
        let input = containerd::read_input(&read_stdin(), &flags.id, &flags.namespace);
        let first = |candidates: &[&str]| {
            candidates
                .iter()
                .find(|text| !text.is_empty())
                .map(|text| (*text).to_owned())
        };
        let need = |name: &str, candidates: &[&str]| {
            first(candidates).ok_or_else(|| {
                format!(
                    "start needs the flag -{name}: this program is run by containerd (runtime io.containerd.snp.v2)"
                )
            })
        };
        let from_environment = |name| std::env::var(name).unwrap_or_default();
        let bundle = match flags.bundle.as_str() {
            "" => std::env::current_dir().map_err(|error| format!("the bundle's folder is gone: {error}"))?,
            bundle => PathBuf::from(bundle),
        };
        Ok(Call {
            id: need("id", &[&flags.id, &input.id])?,
            namespace: need("namespace", &[&flags.namespace, &input.namespace])?,
            address: first(&[&flags.address, &input.address, &from_environment("GRPC_ADDRESS")]).unwrap_or_default(),
            ttrpc_address: first(&[&input.ttrpc_address, &from_environment("TTRPC_ADDRESS")]).unwrap_or_default(),
            publish_binary: PathBuf::from(&flags.publish_binary),
            bundle,
            config_file: config::named_file(&input.config_path, std::env::var(FILE_VARIABLE).ok()),
            input,
        })
    }
}

/// What containerd wrote to standard input; nothing when it is a terminal or stays silent for two seconds.
pub fn read_stdin() -> Vec<u8> {
    let mut bytes = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() && sys::wait_for_bytes(stdin.as_fd(), INPUT_DEADLINE) {
        let _ = stdin.lock().take(MAX_INPUT_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// A further container: its pod's keeper must live.
fn join(id: &str, pod_id: &str, socket: &Path) -> Result<(), String> {
    match sys::connect_unix(socket) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(format!(
            "container {id} can't join pod {pod_id}: the pod's keeper does not answer at {} ({error}). Remove the pod and create it again",
            socket.display()
        )),
    }
}

/// A new pod: binds its socket, with no second keeper for the same pod possible, and launches the daemon.
fn begin(call: &Call, places: &Places, key: &str, socket: &Path) -> Result<(), String> {
    let folder = places.keepers();
    make_folder(places.state_dir(), 0o711)?;
    make_folder(&folder, 0o700)?;
    let describe = |error: io::Error| format!("bind {}: {error}", socket.display());
    let lock = File::open(&folder).map_err(|error| format!("open {}: {error}", folder.display()))?;
    sys::lock(lock.as_fd(), true).map_err(describe)?;
    match sys::connect_unix(socket) {
        Ok(_) => return Err(already_running(call)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => return Err(already_running(call)),
            ErrorKind::ConnectionRefused => fs::remove_file(socket).map_err(describe)?,
            ErrorKind::NotFound => {}
            _ => return Err(describe(error)),
        },
    }
    let mask = sys::set_umask(0o177);
    let bound = UnixListener::bind(socket);
    sys::set_umask(mask);
    let listener = bound.map_err(describe)?;
    sys::unlock(lock.as_fd());
    launch(call, places, key, socket, &listener).inspect_err(|_| {
        let _ = fs::remove_file(socket);
    })
}

fn already_running(call: &Call) -> String {
    format!(
        "{} in namespace {} is already running: delete it first, or choose another id",
        call.id, call.namespace
    )
}

/// Makes a folder, and those above it, unless it is there.
pub fn make_folder(folder: &Path, mode: u32) -> Result<(), String> {
    let mut builder = DirBuilder::new();
    match builder.mode(mode).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => builder
            .recursive(true)
            .create(folder)
            .map_err(|error| no_folder(folder, &error)),
        result => result.map_err(|error| no_folder(folder, &error)),
    }
}

fn no_folder(folder: &Path, error: &io::Error) -> String {
    format!(
        "make the folder {}: {error}. Check state_dir in the configuration",
        folder.display()
    )
}

/// Starts this program again as the daemon, with the listening socket as descriptor 3.
fn launch(call: &Call, places: &Places, key: &str, socket: &Path, listener: &UnixListener) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| format!("read /proc/self/exe: {error}"))?;
    let config_file = call.config_file.as_deref().unwrap_or(Path::new(""));
    let mut arguments = vec![b"keep".to_vec()];
    let named: [(&str, &[u8]); 9] = [
        ("-id", call.id.as_bytes()),
        ("-namespace", call.namespace.as_bytes()),
        ("-address", call.address.as_bytes()),
        ("-ttrpc-address", call.ttrpc_address.as_bytes()),
        ("-publish-binary", call.publish_binary.as_os_str().as_encoded_bytes()),
        ("-bundle", call.bundle.as_os_str().as_encoded_bytes()),
        ("-state-dir", places.state_dir().as_os_str().as_encoded_bytes()),
        ("-socket", socket.as_os_str().as_encoded_bytes()),
        ("-config", config_file.as_os_str().as_encoded_bytes()),
    ];
    for (name, value) in named {
        arguments.extend([name.as_bytes().to_vec(), value.to_vec()]);
    }
    let plan = Detached {
        program: &program,
        fallback: Some(Path::new("/proc/self/exe")),
        arguments,
        environment: [variable("PATH"), variable(FILE_VARIABLE)]
            .into_iter()
            .flatten()
            .collect(),
        listener: listener.as_fd(),
        output: None,
    };
    plan.spawn()
        .map_err(|error| format!("start the keeper of pod {} ({key}): {error}", call.id))
}

/// Leaves the address in the bundle, where containerd 1.6 and 1.7 look for it after their own restart, and `delete` finds the state folder.
fn write_address(bundle: &Path, address: &str) -> Result<(), String> {
    let file = bundle.join("address");
    let temporary = bundle.join(format!(".address-{}", std::process::id()));
    let written = fs::write(&temporary, address).and_then(|()| fs::rename(&temporary, &file));
    written.map_err(|error| format!("write {}: {error}", file.display()))
}
