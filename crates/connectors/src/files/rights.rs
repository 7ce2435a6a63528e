//! What this process may do, and what it adds to modes, as far as a restore has to know.

/// The bit of the capability to make device nodes.
const CAP_MKNOD: u32 = 27;
/// Where the mask is not known, no mode comes out as it was asked for.
const UNKNOWN_UMASK: u32 = 0o777;

/// The rights of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    /// Whether owners can be set.
    pub(super) is_root: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The bits that are taken from the mode of whatever is made.
    pub(super) umask: u32,
    /// Whether device nodes can be made, as far as that can be told without trying.
    pub(super) makes_devices: bool,
}

impl Rights {
    pub(super) fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str, radix| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), radix).ok()
        };
        let is_root = rustix::process::geteuid().is_root();
        Self {
            is_root,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: field("Umask:", 8)
                .and_then(|umask| u32::try_from(umask).ok())
                .unwrap_or(UNKNOWN_UMASK),
            makes_devices: field("CapEff:", 16).map_or(is_root, |bits| bits & (1 << CAP_MKNOD) != 0),
        }
    }
}
