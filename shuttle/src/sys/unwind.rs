//! Stubs for stack unwinding in the agent, which aborts on panic and so never unwinds.
//!
//! To print a backtrace, `std` brings along a DWARF parser, a demangler and an inflater, on top of libunwind. They are
//! of no use to a stripped agent, but make up half of it, and it is sent at every start. A stack walk that sees no
//! frame, and is known at link time, makes all of them dead code: 264 KB of 545 remain. A panic still prints its place
//! and message.
//!
//! The stubs are for musl only, since glibc's own archive defines these names and uses them.

use std::process::abort;

use libc::{c_int, c_void};

/// The result of `_Unwind_Backtrace` after it has called back for every frame (`_URC_END_OF_STACK`, Itanium C++ ABI).
const END_OF_STACK: c_int = 5;

// SAFETY: its caller handles any number of frames, including none.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_on_frame: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// Defines functions that only an unwinding stack would call.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        // SAFETY: it touches nothing of its caller's and doesn't return.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            abort()
        }
    )*};
}

never_called! {
    _Unwind_Resume _Unwind_GetLanguageSpecificData _Unwind_GetIPInfo _Unwind_GetRegionStart _Unwind_SetGR _Unwind_SetIP
    _Unwind_GetTextRelBase _Unwind_GetDataRelBase
}
