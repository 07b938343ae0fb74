//! The command line that containerd uses: Go's `flag` syntax (`-id x`, `--id=x`, `-debug`), with one command word.

/// What the command line said. A flag that was not given is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub namespace: String,
    pub id: String,
    pub address: String,
    pub publish_binary: String,
    pub bundle: String,
    /// Only for the daemon, which `start` launches: what it can't ask of the environment.
    pub state_dir: String,
    pub ttrpc_address: String,
    pub config: String,
    pub socket: String,
    pub info: bool,
    pub version: bool,
    pub help: bool,
    /// `start`, `delete`, `keep`; empty when there was none.
    pub command: String,
}

const COMMANDS: [&str; 3] = ["start", "delete", "keep"];

impl Flags {
    /// Reads the arguments after the program's name. Flags may stand before and after the command word. A flag that this
    /// version does not know is passed over, with its value, so that a newer containerd still gets its container.
    ///
    /// # Errors
    /// A text when a flag's value is missing, a boolean is none, or there is a second command word.
    pub fn parse<I: IntoIterator<Item = String>>(arguments: I) -> Result<Flags, String> {
        let mut flags = Flags::default();
        let mut rest = arguments.into_iter().peekable();
        while let Some(argument) = rest.next() {
            let Some(name) = flag_name(&argument) else {
                flags.set_command(argument)?;
                continue;
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if let Some(switch) = flags.switch(name) {
                *switch = inline.map_or(Ok(true), |value| boolean(name, &value))?;
            } else if let Some(text) = flags.text(name) {
                let value = inline.or_else(|| rest.next());
                *text = value.ok_or_else(|| format!("flag -{name} needs a value"))?;
            } else if inline.is_none() && name != "debug" {
                rest.next_if(|next| flag_name(next).is_none() && !COMMANDS.contains(&next.as_str()));
            }
        }
        Ok(flags)
    }

    fn set_command(&mut self, word: String) -> Result<(), String> {
        if !self.command.is_empty() {
            return Err(format!("two commands: {} and {word}", self.command));
        }
        self.command = word;
        Ok(())
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "info" => Some(&mut self.info),
            "v" | "version" => Some(&mut self.version),
            "h" | "help" => Some(&mut self.help),
            _ => None,
        }
    }

    fn text(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "address" => Some(&mut self.address),
            "publish-binary" => Some(&mut self.publish_binary),
            "bundle" => Some(&mut self.bundle),
            "socket" => Some(&mut self.socket),
            "state-dir" => Some(&mut self.state_dir),
            "ttrpc-address" => Some(&mut self.ttrpc_address),
            "config" => Some(&mut self.config),
            _ => None,
        }
    }
}

/// The part after `-` or `--`; nothing when the argument is no flag.
fn flag_name(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    (!name.is_empty()).then_some(name)
}

/// The words Go's `strconv.ParseBool` takes.
fn boolean(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("flag -{name} wants true or false, not {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn reads_containerds_start_line() {
        let flags =
            parse("-namespace k8s.io -address /run/c.sock -publish-binary /bin/containerd -id abc -debug start")
                .unwrap();
        assert_eq!(flags.namespace, "k8s.io");
        assert_eq!(flags.address, "/run/c.sock");
        assert_eq!(flags.publish_binary, "/bin/containerd");
        assert_eq!((flags.id.as_str(), flags.command.as_str()), ("abc", "start"));
    }

    #[test]
    fn takes_both_dashes_and_equal_signs() {
        let flags = parse("--namespace=x --id=a=b delete -bundle /b").unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("x", "a=b"));
        assert_eq!((flags.command.as_str(), flags.bundle.as_str()), ("delete", "/b"));
    }

    #[test]
    fn passes_over_unknown_flags() {
        let flags = parse("-new value -newer=1 -newest start -id q").unwrap();
        assert_eq!((flags.command.as_str(), flags.id.as_str()), ("start", "q"));
    }

    #[test]
    fn refuses_missing_values_and_two_commands() {
        assert!(parse("start -id").is_err());
        assert!(parse("start delete").is_err());
        assert!(parse("-info=maybe").is_err());
        assert!(parse("-info=false").is_ok_and(|flags| !flags.info));
    }
}
