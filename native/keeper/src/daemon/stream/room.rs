//! How much a FIFO holds: the usual 64 KiB, and more while it carries more than that at a time. A FIFO's size costs no memory by itself, but
//! counts against what the kernel grants a user's pipes as a whole, so that no quiet stream has more than the usual.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Direction, Local, Stream};
use crate::sys;

/// What every pipe holds unless it is told otherwise (pipe(7)).
pub const USUAL_BYTES: u32 = 64 << 10;
/// What one holds that is full again and again: beyond it nothing is gained.
const BUSY_BYTES: u32 = 256 << 10;
/// More than the guest, its vsock device and the sockets hold of an output between them: the largest pipe that needs no privilege.
const LAST_OUTPUT_BYTES: u32 = 1 << 20;
/// So often a FIFO is full, each time so soon after the last, before it is enlarged.
const FULL_TIMES: u32 = 4;
const FULL_WITHIN: Duration = Duration::from_secs(1);
/// An enlarged FIFO through which nothing has come for so long is an ordinary one again.
const QUIET: Duration = Duration::from_secs(10);

/// What a stream's FIFO may hold, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Size {
    #[default]
    Usual,
    /// Enlarged. At `look_at` it is made smaller unless more than `bytes` were moved; without a time that failed, and waits for the next bytes.
    Busy { look_at: Option<Instant>, bytes: u64 },
    /// It stays as it is.
    Last,
}

/// A FIFO's size, and how often it was full lately.
#[derive(Debug, Default)]
pub struct Room {
    size: Size,
    full: u32,
    full_at: Option<Instant>,
}

impl Stream {
    /// A process has ended: what is left of its output goes into the FIFO at once, however slow its reader is. A VMM gives up a
    /// connection soon after the guest has closed it (Cloud Hypervisor after 2 s, a guest's kernel after 8), and what it holds with it.
    pub fn make_room(&mut self) {
        if let (Local::Fifo(fifo), Direction::Out) = (&self.local, self.plan.direction) {
            // Without it the usual size has to do.
            let _ = sys::enlarge_pipe(fifo.as_fd(), LAST_OUTPUT_BYTES);
            self.room.size = Size::Last;
        }
    }

    /// The FIFO was full: one side waited for the other. When that goes on it gets larger, so that they take fewer turns.
    pub(super) fn was_full(&mut self, now: Instant) {
        if self.room.size != Size::Usual {
            return;
        }
        let again = self.room.full_at.is_some_and(|time| now - time < FULL_WITHIN);
        self.room.full = if again { self.room.full + 1 } else { 1 };
        self.room.full_at = Some(now);
        if self.room.full < FULL_TIMES {
            return;
        }
        if let Local::Fifo(fifo) = &self.local {
            self.room.size = match sys::enlarge_pipe(fifo.as_fd(), BUSY_BYTES) {
                Ok(()) => Size::Busy {
                    look_at: Some(now + QUIET),
                    bytes: self.bytes,
                },
                // The user's pipes have all that they may have.
                Err(_) => Size::Last,
            };
        }
    }

    /// When [`Stream::tidy_room`] is due.
    pub(super) fn room_deadline(&self) -> Option<Instant> {
        match self.room.size {
            Size::Busy { look_at, .. } => look_at,
            Size::Usual | Size::Last => None,
        }
    }

    /// Bytes came through: an enlarged FIFO that could not be made smaller is looked at again.
    pub(super) fn use_room(&mut self) {
        if let Size::Busy { look_at: None, bytes } = self.room.size {
            let look_at = Some(Instant::now() + QUIET);
            self.room.size = Size::Busy { look_at, bytes };
        }
    }

    /// Makes an enlarged FIFO an ordinary one when it has been quiet.
    pub(super) fn tidy_room(&mut self, now: Instant) {
        let (
            Size::Busy {
                look_at: Some(due),
                bytes,
            },
            Local::Fifo(fifo),
        ) = (self.room.size, &self.local)
        else {
            return;
        };
        if now < due {
            return;
        }
        if self.bytes != bytes {
            let look_at = Some(now + QUIET);
            self.room.size = Size::Busy {
                look_at,
                bytes: self.bytes,
            };
        } else if sys::resize_pipe(fifo.as_fd(), USUAL_BYTES).is_ok() {
            self.room = Room::default();
        } else {
            // It holds more than that, and nobody takes it.
            self.room.size = Size::Busy { look_at: None, bytes };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;
    use crate::testing::Folder;
    use std::io::Write;

    const HALF: Duration = Duration::from_millis(500);

    fn stream(folder: &Folder) -> Stream {
        let path = folder.path("out");
        let name = sys::path_string(&path).unwrap();
        // SAFETY: a string that ends with zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let plan = Plan {
            direction: Direction::Out,
            fifo: path.to_str().unwrap().to_owned(),
            vsock: folder.path("vsock"),
            port: 1,
            token: String::new(),
        };
        Stream::new(plan, (1, 2), Instant::now()).unwrap()
    }

    fn holds(stream: &Stream) -> u32 {
        let Local::Fifo(fifo) = &stream.local else {
            panic!("no FIFO")
        };
        sys::pipe_bytes(fifo.as_fd()).unwrap()
    }

    #[test]
    fn a_fifo_that_is_full_again_and_again_gets_larger_and_after_a_quiet_time_smaller() {
        let folder = Folder::new("room");
        let mut stream = stream(&folder);
        let mut now = Instant::now();
        for _ in 1..FULL_TIMES {
            stream.was_full(now);
            now += HALF;
        }
        assert_eq!((holds(&stream), stream.room_deadline()), (USUAL_BYTES, None));
        stream.was_full(now);
        assert_eq!(holds(&stream), BUSY_BYTES);
        assert_eq!(stream.room_deadline(), Some(now + QUIET));
        stream.bytes += 1;
        now += QUIET;
        stream.tidy_room(now);
        assert_eq!(
            (holds(&stream), stream.room_deadline()),
            (BUSY_BYTES, Some(now + QUIET))
        );
        stream.tidy_room(now + HALF);
        assert_eq!(holds(&stream), BUSY_BYTES);
        stream.tidy_room(now + QUIET);
        assert_eq!((holds(&stream), stream.room_deadline()), (USUAL_BYTES, None));
    }

    #[test]
    fn a_fifo_that_is_full_now_and_then_stays_as_it_is() {
        let folder = Folder::new("room");
        let mut stream = stream(&folder);
        let began = Instant::now();
        for times in 0..3 * FULL_TIMES {
            stream.was_full(began + times * (FULL_WITHIN + HALF));
        }
        assert_eq!(holds(&stream), USUAL_BYTES);
    }

    #[test]
    fn what_nobody_takes_is_looked_at_again_when_bytes_come() {
        let folder = Folder::new("room");
        let mut stream = stream(&folder);
        let now = Instant::now();
        for _ in 0..FULL_TIMES {
            stream.was_full(now);
        }
        let mut writer = std::fs::File::from(open_writer_of(&stream));
        writer.write_all(&[0; 2 * USUAL_BYTES as usize]).unwrap();
        stream.tidy_room(now + QUIET);
        assert_eq!((holds(&stream), stream.room_deadline()), (BUSY_BYTES, None));
        stream.moved(1);
        assert!(stream.room_deadline().is_some());
    }

    #[test]
    fn the_room_for_the_last_output_stays() {
        let folder = Folder::new("room");
        let mut stream = stream(&folder);
        let now = Instant::now();
        for _ in 0..FULL_TIMES {
            stream.was_full(now);
        }
        stream.make_room();
        assert_eq!((holds(&stream), stream.room_deadline()), (LAST_OUTPUT_BYTES, None));
    }

    fn open_writer_of(stream: &Stream) -> std::os::fd::OwnedFd {
        let Local::Fifo(fifo) = &stream.local else {
            panic!("no FIFO")
        };
        super::super::open_writer(fifo.as_fd()).unwrap()
    }
}
