//! Files of subnets, one per line. Blank lines and everything after a `#` are skipped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::policy::{Subnet, SubnetError};

/// The largest file, in bytes: more than the kernel's maps hold, and little enough for any machine.
const MAX_BYTES: u64 = 64 << 20;

/// Why a file of subnets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It can't be read.
    #[error("can't read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line of the file is no subnet.
    #[error("{}:{line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, counted from 1.
        line: usize,
        /// What is wrong.
        source: SubnetError,
    },
}

/// Reads the subnets of a file, in order.
pub(super) fn read_list(path: &Path) -> Result<Vec<Subnet>, ListError> {
    let text = read(path).map_err(|source| ListError::Unreadable { path: path.to_owned(), source })?;
    let named = |(line, source)| ListError::Line { path: path.to_owned(), line, source };
    parse_list(&text).map(|subnet| subnet.map_err(named)).collect()
}

fn read(path: &Path) -> io::Result<String> {
    // The length of a pipe, such as a shell's `<(…)`, is not known.
    let length = fs::metadata(path)?.len();
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("its {length} bytes are more than {MAX_BYTES}")));
    }
    fs::read_to_string(path)
}

fn parse_list(text: &str) -> impl Iterator<Item = Result<Subnet, (usize, SubnetError)>> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let parse = |line: &str| line.parse().map_err(|error| (index + 1, error));
        (!line.is_empty()).then(|| parse(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_mistakes_numbered() {
        for (text, expected) in [
            ("", Ok("")),
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("# all of it\n\n10.0.0.0/8\n  fd00::/8  # ours\n\t\n", Ok("10.0.0.0/8 fd00::/8")),
            ("10.0.0.0/8\r\n[fd00::/8]:80\r\n", Ok("10.0.0.0/8 [fd00::/8]:80")),
            ("a.name:443\n0/0\n", Ok("a.name:443 0/0")),
            ("10.0.0.0/8\n#\n10.0.0.0/33\n", Err("3: the mask /33 must be a number from 0 to 32")),
            ("10.0.0.0/8 fd00::/8", Err("1: the mask /8 fd00::/8 must be a number from 0 to 32")),
        ] {
            let parsed: Result<Vec<_>, _> = parse_list(text).collect();
            let got = match parsed {
                Ok(subnets) => Ok(subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
                Err((line, error)) => Err(format!("{line}: {error}")),
            };
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (list, missing) = (directory.path().join("list"), directory.path().join("missing"));
        fs::write(&list, "10.0.0.0/8\nnot:a:subnet\n").unwrap();
        let error = |path: &Path| read_list(path).unwrap_err().to_string();
        assert_eq!(
            error(&list),
            format!("{}:2: `not:a:subnet` is neither an address nor a host name", list.display())
        );
        assert!(error(&missing).starts_with(&format!("can't read {}: No such file", missing.display())));
    }
}
