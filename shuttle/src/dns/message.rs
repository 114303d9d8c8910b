//! What must be known of DNS messages (RFC 1035, section 4): whether one answers another.

/// Bytes of the header.
const HEADER: usize = 12;
/// The bit of the third byte that says: an answer.
const RESPONSE: u8 = 0x80;
/// The codes by which a server says that it can't tell: SERVFAIL, NOTIMP, REFUSED. libc then asks the next.
const CANNOT_TELL: [u8; 3] = [SERVFAIL, 4, 5];
const SERVFAIL: u8 = 2;
/// The bit of the fourth byte that says so.
const RECURSION_AVAILABLE: u8 = 0x80;

/// What has come after a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its answer.
    Answer,
    /// Its answer: that the server can't tell.
    Poor,
    /// Something else.
    Foreign,
}

/// Whether `message` answers `query`: it has the same id and the same questions. (A server may change the case of their
/// letters; one that doesn't understand the query may leave them out, with a code that says so.)
pub(crate) fn judge(query: &[u8], message: &[u8]) -> Verdict {
    let (Some(asked), Some(head)) = (query.first_chunk::<HEADER>(), message.first_chunk::<HEADER>()) else {
        return Verdict::Foreign;
    };
    if head[..2] != asked[..2] || head[2] & RESPONSE == 0 {
        return Verdict::Foreign;
    }
    let code = head[3] & 0xf;
    let count = |head: &[u8; HEADER]| u16::from_be_bytes([head[4], head[5]]);
    if count(head) == 0 && code != 0 {
        return if CANNOT_TELL.contains(&code) { Verdict::Poor } else { Verdict::Answer };
    }
    let same = match (questions(query, count(asked)), questions(message, count(head))) {
        // Lengths of labels are below 64, and letters above.
        (Some(these), Some(those)) => count(asked) == count(head) && these.eq_ignore_ascii_case(those),
        (None, _) | (_, None) => false,
    };
    if !same {
        return Verdict::Foreign;
    }
    if CANNOT_TELL.contains(&code) { Verdict::Poor } else { Verdict::Answer }
}

/// The answer to `query` of a resolver that can't reach any server; `None` where it is no query that can be read.
pub(crate) fn server_failure(query: &[u8]) -> Option<Vec<u8>> {
    let head = query.first_chunk::<HEADER>().filter(|head| head[2] & RESPONSE == 0)?;
    let [i0, i1, flags, _, q0, q1, ..] = *head;
    // What was asked for, and how, is repeated; no records follow.
    let answer = [i0, i1, flags | RESPONSE, RECURSION_AVAILABLE | SERVFAIL, q0, q1, 0, 0, 0, 0, 0, 0];
    Some([&answer, questions(query, u16::from_be_bytes([q0, q1]))?].concat())
}

/// The bytes of a message's question section; `None` if it has none that can be read.
fn questions(message: &[u8], count: u16) -> Option<&[u8]> {
    let mut rest = message.get(HEADER..)?;
    let start = rest.len();
    for _ in 0..count {
        loop {
            let (&length, after) = rest.split_first()?;
            // No pointers: there is nothing before the first question that they could point to.
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
            ("SERVFAIL", answer(7, [0x81, 2], &["a.test"]), Verdict::Poor),
            ("REFUSED without a question", answer(7, [0x81, 5], &[]), Verdict::Poor),
            ("FORMERR without a question", answer(7, [0x81, 1], &[]), Verdict::Answer),
            ("no question and no error", answer(7, [0x81, 0], &[]), Verdict::Foreign),
            ("another id", answer(8, [0x81, 0x80], &["a.test"]), Verdict::Foreign),
            ("another name", answer(7, [0x81, 0x80], &["b.test"]), Verdict::Foreign),
            ("a longer name", answer(7, [0x81, 0x80], &["a.test.x"]), Verdict::Foreign),
            ("two questions", answer(7, [0x81, 0x80], &["a.test", "a.test"]), Verdict::Foreign),
            ("a query", query.clone(), Verdict::Foreign),
            ("less than a header", query[..11].to_vec(), Verdict::Foreign),
            ("half a question", answer(7, [0x81, 0x80], &["a.test"])[..15].to_vec(), Verdict::Foreign),
        ] {
            assert_eq!(judge(&query, &bytes), want, "{what}");
        }
        let failure = server_failure(&query).expect("an answer");
        assert_eq!((judge(&query, &failure), &failure[..4]), (Verdict::Poor, &[0, 7, 0x81, 0x82][..]));
        assert_eq!(server_failure(&failure), None);
        assert_eq!(server_failure(&query[..15]), None);
        let mut pointer = message(7, [0x81, 0x80], &["a.test"], &[]);
        pointer[12] = 0xc0;
        assert_eq!(judge(&query, &pointer), Verdict::Foreign);
        assert_eq!(judge(&[0; 3], &pointer), Verdict::Foreign);
    }
}
