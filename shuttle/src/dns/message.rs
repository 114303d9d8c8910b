//! DNS messages (RFC 1035, section 4): whether one answers another. Messages pass through unchanged, so nothing beyond
//! the question section is read.
//!
//! No library is used. Those that are small enough for the agent parse whole messages, and so refuse some that must
//! pass. Compared with this module, simple-dns 0.13 makes the packed agent (474 KB) larger by 17 KB, and refuses
//! question types and classes that it doesn't know; dns-protocol 0.1.2 makes it larger by 5 KB, and refuses unknown
//! types of questions and records. Both refuse truncated answers that end within a record.

/// Bytes of the header.
const HEADER: usize = 12;
/// The bit QR of the third byte: the message is a response.
const RESPONSE: u8 = 0x80;
/// The response codes of a server that can't answer: SERVFAIL, NOTIMP, REFUSED. libc then asks the next server.
const FAILURES: [u8; 3] = [SERVFAIL, 4, 5];
const SERVFAIL: u8 = 2;
/// The bit RA of the fourth byte.
const RECURSION_AVAILABLE: u8 = 0x80;

/// How a message relates to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its answer.
    Answer,
    /// An answer by which the server says that it can't answer: one of [`FAILURES`].
    Failure,
    /// No answer to it.
    Unrelated,
}

/// Returns whether `message` answers `query`: whether it is a response with the same id and the same questions. A
/// server may change the case of letters in the questions. With an error code, it may leave the questions out.
pub(crate) fn judge(query: &[u8], message: &[u8]) -> Verdict {
    let (Some(asked), Some(head)) = (query.first_chunk::<HEADER>(), message.first_chunk::<HEADER>()) else {
        return Verdict::Unrelated;
    };
    if head[..2] != asked[..2] || head[2] & RESPONSE == 0 {
        return Verdict::Unrelated;
    }
    let code = head[3] & 0xf;
    let count = |head: &[u8; HEADER]| u16::from_be_bytes([head[4], head[5]]);
    if count(head) == 0 && code != 0 {
        return if FAILURES.contains(&code) { Verdict::Failure } else { Verdict::Answer };
    }
    let same = match (questions(query, count(asked)), questions(message, count(head))) {
        // Ignoring case can't confuse lengths of labels with letters: lengths are below 64, letters above.
        (Some(these), Some(those)) => count(asked) == count(head) && these.eq_ignore_ascii_case(those),
        (None, _) | (_, None) => false,
    };
    if !same {
        return Verdict::Unrelated;
    }
    if FAILURES.contains(&code) { Verdict::Failure } else { Verdict::Answer }
}

/// Makes a SERVFAIL answer to `query`, because no server can be reached. Returns `None` if the message is not a query,
/// or can't be parsed.
pub(crate) fn server_failure(query: &[u8]) -> Option<Vec<u8>> {
    let head = query.first_chunk::<HEADER>().filter(|head| head[2] & RESPONSE == 0)?;
    let [i0, i1, flags, _, q0, q1, ..] = *head;
    // Repeats the opcode, the flag RD and the questions; no records follow.
    let answer = [i0, i1, flags | RESPONSE, RECURSION_AVAILABLE | SERVFAIL, q0, q1, 0, 0, 0, 0, 0, 0];
    Some([&answer, questions(query, u16::from_be_bytes([q0, q1]))?].concat())
}

/// Returns the bytes of a message's question section of `count` questions; `None` if it can't be parsed.
fn questions(message: &[u8], count: u16) -> Option<&[u8]> {
    let mut rest = message.get(HEADER..)?;
    let start = rest.len();
    for _ in 0..count {
        loop {
            let (&length, after) = rest.split_first()?;
            // A pointer (RFC 1035, section 4.1.4) would have nothing to point to before the first question.
            if length >= 0x40 {
                return None;
            }
            rest = after.get(usize::from(length)..)?;
            if length == 0 {
                break;
            }
        }
        // Type and class.
        rest = rest.get(4..)?;
    }
    message.get(HEADER..HEADER + start - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u16, flags: [u8; 2], names: &[&str], rest: &[u8]) -> Vec<u8> {
        let [i0, i1] = id.to_be_bytes();
        let mut bytes = vec![i0, i1, flags[0], flags[1], 0, names.len() as u8, 0, 0, 0, 0, 0, 0];
        for name in names {
            for label in name.split('.') {
                bytes.push(label.len() as u8);
                bytes.extend(label.bytes());
            }
            bytes.extend([0, 0, 1, 0, 1]);
        }
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let query = message(7, [1, 0], &["a.test"], b"edns");
        let answer = |id, flags, names: &[&str]| message(id, flags, names, b"records");
        for (what, bytes, want) in [
            ("the answer", answer(7, [0x81, 0x80], &["a.test"]), Verdict::Answer),
            ("a truncated one", answer(7, [0x83, 0x80], &["a.test"]), Verdict::Answer),
            ("another case", answer(7, [0x81, 0x80], &["A.tEst"]), Verdict::Answer),
            ("no such name", answer(7, [0x81, 3], &["a.test"]), Verdict::Answer),
            ("SERVFAIL", answer(7, [0x81, 2], &["a.test"]), Verdict::Failure),
            ("REFUSED without a question", answer(7, [0x81, 5], &[]), Verdict::Failure),
            ("FORMERR without a question", answer(7, [0x81, 1], &[]), Verdict::Answer),
            ("no question and no error", answer(7, [0x81, 0], &[]), Verdict::Unrelated),
            ("another id", answer(8, [0x81, 0x80], &["a.test"]), Verdict::Unrelated),
            ("another name", answer(7, [0x81, 0x80], &["b.test"]), Verdict::Unrelated),
            ("a longer name", answer(7, [0x81, 0x80], &["a.test.x"]), Verdict::Unrelated),
            ("two questions", answer(7, [0x81, 0x80], &["a.test", "a.test"]), Verdict::Unrelated),
            ("a query", query.clone(), Verdict::Unrelated),
            ("less than a header", query[..11].to_vec(), Verdict::Unrelated),
            ("half a question", answer(7, [0x81, 0x80], &["a.test"])[..15].to_vec(), Verdict::Unrelated),
        ] {
            assert_eq!(judge(&query, &bytes), want, "{what}");
        }
        let failure = server_failure(&query).expect("an answer");
        assert_eq!((judge(&query, &failure), &failure[..4]), (Verdict::Failure, &[0, 7, 0x81, 0x82][..]));
        assert_eq!(server_failure(&failure), None);
        assert_eq!(server_failure(&query[..15]), None);
        let mut pointer = message(7, [0x81, 0x80], &["a.test"], &[]);
        pointer[12] = 0xc0;
        assert_eq!(judge(&query, &pointer), Verdict::Unrelated);
        assert_eq!(judge(&[0; 3], &pointer), Verdict::Unrelated);
    }
}
