//! Backends panic where something is missing; here that becomes a sentence.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Mutex, PoisonError};

/// Does a piece of work that may panic. The error is what the first panic said, on whatever thread that was: the others
/// only miss its result. Meanwhile none is printed.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let first = Arc::new(Mutex::new(None));
    let before = take_hook();
    let said = first.clone();
    set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("its backend panicked").trim().to_owned();
        said.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }));
    let done = catch_unwind(AssertUnwindSafe(work));
    set_hook(before);
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    done.map_err(|_| first.unwrap_or_else(|| "its backend panicked".into()))
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn the_first_panic_says_why() {
        assert_eq!(caught(|| 3), Ok(3));
        let work = || {
            let other = std::thread::spawn(|| panic!("no driver, {}", "no device"));
            assert!(other.join().is_ok(), "the result is missing");
        };
        assert_eq!(caught(work), Err("no driver, no device".into()));
    }
}
