//! The thread that makes the link's requests to the helper.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::Resolution;
use crate::capture::replies::{ReplyChannel, ReplyRequest};

/// The most requests that wait for the helper.
const MAX_REQUESTS: usize = 1024;

/// Starts the thread. It sends the requests that it receives to the helper, one at a time, and passes the helper's
/// responses to `resolve`. It ends when the sender is dropped.
pub(in crate::client) fn spawn(
    channel: ReplyChannel,
    resolve: impl Fn(Resolution) + Send + 'static,
) -> io::Result<SyncSender<ReplyRequest>> {
    let (sender, requests) = sync_channel(MAX_REQUESTS);
    let serve = move || {
        for request in requests {
            match request {
                ReplyRequest::Path(request) => resolve((request, channel.reply_path(&request))),
                ReplyRequest::Unreachable(notice) => {
                    if let Err(error) = channel.notify(&notice) {
                        tracing::debug!("nobody hears that {} is unreachable: {error}", notice.peer);
                    }
                }
            }
        }
    };
    thread::Builder::new().name("replies".into()).spawn(serve)?;
    Ok(sender)
}
