//! The archives of a base backup: tar as Postgres writes it, taken apart as it comes.
//!
//! Postgres writes plain ustar headers: names of less than 100 bytes, sizes and times in octal or, where too large, in
//! base 256, and two empty blocks at the end. Anything else is refused.

use super::base_error::DamageError;

pub(super) const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    Directory,
    Symlink,
}

/// The header of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Relative, without `.` or `..` in it.
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) bytes: u64,
    /// Permission bits.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) mtime_seconds: i64,
}

/// What comes out of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Member(Member),
    /// The next bytes of the last member.
    Content(&'a [u8]),
    /// The last member is whole.
    End,
}

/// Takes one archive apart.
#[derive(Debug, Default)]
pub(super) struct TarReader {
    state: State,
    header: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    Content {
        left: u64,
        padding: u64,
    },
    Padding(u64),
    /// After this many empty blocks.
    Ending(u8),
}

impl TarReader {
    /// Takes the next part off the front of `input`; `None` where all of it is used up.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Part<'a>>, DamageError> {
        loop {
            match &mut self.state {
                State::Content { left: 0, padding } => {
                    self.state = State::Padding(*padding);
                    return Ok(Some(Part::End));
                }
                _ if input.is_empty() => return Ok(None),
                State::Content { left, .. } => {
                    let taken = take(input, *left);
                    *left -= taken.len() as u64;
                    return Ok(Some(Part::Content(taken)));
                }
                State::Padding(0) => self.state = State::Header,
                State::Padding(left) => *left -= take(input, *left).len() as u64,
                State::Header | State::Ending(_) => {
                    let missing = (BLOCK - self.header.len()) as u64;
                    self.header.extend_from_slice(take(input, missing));
                    if self.header.len() < BLOCK {
                        continue;
                    }
                    let header = std::mem::take(&mut self.header);
                    if let Some(member) = self.block(&header)? {
                        return Ok(Some(Part::Member(member)));
                    }
                }
            }
        }
    }

    /// Whether the archive has come to its proper end.
    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ending(2) && self.header.is_empty()
    }

    fn block(&mut self, header: &[u8]) -> Result<Option<Member>, DamageError> {
        let is_empty = header.iter().all(|byte| *byte == 0);
        match (&self.state, is_empty) {
            (State::Header, true) => self.state = State::Ending(1),
            (State::Ending(1), true) => self.state = State::Ending(2),
            (State::Header, false) => {
                let member = member(header).ok_or(DamageError::Header)?;
                let bytes = if member.kind == MemberKind::File {
                    member.bytes
                } else {
                    0
                };
                self.state = State::Content {
                    left: bytes,
                    padding: bytes.next_multiple_of(BLOCK as u64) - bytes,
                };
                return Ok(Some(member));
            }
            _ => return Err(DamageError::Header),
        }
        Ok(None)
    }
}

fn take<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let length = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    let (taken, rest) = input.split_at(length);
    *input = rest;
    taken
}

fn member(header: &[u8]) -> Option<Member> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
        .map(u64::from)
        .sum();
    if number(header.get(148..156)?)? != sum || header.get(257..262)? != b"ustar" {
        return None;
    }
    let kind = match header.get(156)? {
        b'0' | 0 => MemberKind::File,
        b'5' => MemberKind::Directory,
        b'2' => MemberKind::Symlink,
        _ => return None,
    };
    if *header.get(345)? != 0 {
        return None;
    }
    let name = header.get(..100)?;
    let name = name.split(|byte| *byte == 0).next()?;
    // Folders end with a slash, and those below pg_wal begin with the data folder.
    let path = name.strip_suffix(b"/").unwrap_or(name);
    let path = path.strip_prefix(b"./").unwrap_or(path);
    if !is_inside(path) {
        return None;
    }
    Some(Member {
        path: path.to_owned(),
        kind,
        bytes: number(header.get(124..136)?)?,
        mode: u32::try_from(number(header.get(100..108)?)? & 0o7777).ok()?,
        mtime_seconds: i64::try_from(number(header.get(136..148)?)?).ok()?,
    })
}

fn is_inside(path: &[u8]) -> bool {
    !path.is_empty()
        && path
            .split(|byte| *byte == b'/')
            .all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Octal digits, or base 256 after a byte with its highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
        let low: [u8; 8] = low.try_into().ok()?;
        return high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(low));
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn header(path: &str, kind: u8, bytes: u64) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0100600");
        header[124] = 0x80;
        header[128..136].copy_from_slice(&bytes.to_be_bytes());
        header[136..147].copy_from_slice(b"14637302217");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        header[154] = 0;
        header
    }

    fn archive() -> Vec<u8> {
        let mut tar = header("base/", b'5', 0);
        tar.extend(header("base/1/16384", b'0', 700));
        tar.extend([7; 700]);
        tar.extend([0; 1024 - 700]);
        tar.extend(header("empty", b'0', 0));
        tar.extend([0; 1024]);
        tar
    }

    type Read = (Vec<Member>, Vec<u8>, usize);

    fn read(tar: &[u8], piece: usize) -> Result<Option<Read>, DamageError> {
        let mut reader = TarReader::default();
        let (mut members, mut content, mut ends) = (Vec::new(), Vec::new(), 0);
        for mut input in tar.chunks(piece) {
            while let Some(part) = reader.next(&mut input)? {
                match part {
                    Part::Member(member) => members.push(member),
                    Part::Content(bytes) => content.extend_from_slice(bytes),
                    Part::End => ends += 1,
                }
            }
        }
        // What ends with the last byte is told by a look at nothing.
        while let Some(part) = reader.next(&mut &[][..])? {
            assert_eq!(part, Part::End);
            ends += 1;
        }
        Ok(reader.is_ended().then_some((members, content, ends)))
    }

    #[test]
    fn archives_come_apart_however_they_are_cut() {
        for piece in [1, 7, 511, 512, 513, 1 << 20] {
            let (members, content, ends) = read(&archive(), piece).unwrap().unwrap();
            let paths: Vec<&[u8]> = members.iter().map(|member| &*member.path).collect();
            assert_eq!(paths, [&b"base"[..], b"base/1/16384", b"empty"]);
            assert_eq!((members[1].bytes, members[1].mode), (700, 0o600));
            assert_eq!((content, ends), (vec![7; 700], 3));
        }
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_not_whole() {
        let whole = archive();
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length], 4096).unwrap(), None, "{length}");
        }
        let mut longer = whole.clone();
        longer.extend([0; 512]);
        assert!(read(&longer, 4096).is_err());
        for at in [0, 100, 130, 156, 300] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged, 4096).is_err(), "{at}");
        }
        assert_eq!(
            member(&header("./pg_wal/summaries/", b'5', 0)).unwrap().path,
            b"pg_wal/summaries"
        );
        for path in ["../x", "././x", "./", "/etc/passwd", "a//b", "a/./b", ""] {
            assert_eq!(member(&header(path, b'0', 0)), None, "{path}");
        }
        assert_eq!(member(&header("link", b'1', 0)), None);
    }
}
