//! Unwinding for the agent, which aborts where it panics: there is none.
//!
//! `std` prints a backtrace of whatever panics, and brings along a parser of DWARF, a demangler and an inflater for
//! that, on top of libunwind. In an agent that is stripped they find nothing, but they are half of it, and it crosses
//! the link at every start. With a walk over the stack that sees no frame, known when the program is linked, all of
//! them are dead code: 264 KB remain of 545. A panic still says where it happened, and what.
//!
//! Against musl alone: glibc's own archive defines these names and uses them.

use std::process::abort;

use libc::{c_int, c_void};

/// What `_Unwind_Backtrace` says when it has called back for every frame (`_URC_END_OF_STACK`, Itanium C++ ABI).
const END_OF_STACK: c_int = 5;

// SAFETY: its caller knows any number of frames to be possible.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_on_frame: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// What only an unwinding stack would call.
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
