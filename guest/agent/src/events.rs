//! What happens in the guest without being asked for, until the host asks: words in a bounded queue.

use std::cell::RefCell;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// Events that nobody asked for are kept up to this number; the oldest go first.
const KEPT_MAX: usize = 256;

/// Events of one kind.
#[derive(Default)]
pub struct Events {
    queue: RefCell<VecDeque<String>>,
    more: Notify,
}

impl Events {
    /// Enters an event.
    pub fn push(&self, event: &str) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() == KEPT_MAX {
            queue.pop_front();
        }
        queue.push_back(event.to_string());
        self.more.notify_one();
    }

    /// The next event; each is given once.
    pub async fn next(&self) -> String {
        loop {
            let event = self.queue.borrow_mut().pop_front();
            if let Some(event) = event {
                if !self.queue.borrow().is_empty() {
                    self.more.notify_one();
                }
                return event;
            }
            self.more.notified().await;
        }
    }
}
