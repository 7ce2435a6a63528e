//! The payload of age files, sealed and opened in place and at any offset.
//!
//! The header, where a file's key is wrapped to recipients, is the age crate's work alone: [`begin`] and [`open`] have
//! it write or read one and learn the file's key from it. The payload is age's STREAM of segments, here with the
//! assembly ChaCha20-Poly1305 of `ring`, which takes a third of the time, and with each segment where it will lie, so
//! that a pack is built, sealed and put without a copy and a chunk is read without what lies before it.
//!
//! A payload is cut into segments of 64 KiB, each followed by its tag; the nonce of a segment is its number and a byte
//! that marks the last. Only an empty payload has an empty segment.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::{self, Read};

use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::Zeroizing;

use crate::keys::{Identity, Recipient};

/// Content of a segment.
const SEGMENT_BYTES: usize = 64 * 1024;
/// What follows it.
const TAG_BYTES: usize = 16;
/// A segment as stored.
const SEALED_SEGMENT_BYTES: usize = SEGMENT_BYTES + TAG_BYTES;
const NONCE_BYTES: usize = 16;
/// A header that names hundreds of recipients is smaller.
pub(crate) const HEADER_MAX_BYTES: usize = 128 * 1024;

type FileSecret = Zeroizing<[u8; 16]>;

/// Seals or opens the segments of one file.
pub(crate) struct PayloadKey(LessSafeKey);

impl PayloadKey {
    fn derive(secret: &FileSecret, nonce: &[u8]) -> io::Result<Self> {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, nonce).extract(&secret[..]);
        let okm = key
            .expand(&[b"payload"], &CHACHA20_POLY1305)
            .map_err(io::Error::other)?;
        Ok(Self(LessSafeKey::new(UnboundKey::from(okm))))
    }
}

fn segment_nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    if let Some(counter) = nonce.get_mut(3..11) {
        counter.copy_from_slice(&number.to_be_bytes());
    }
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

/// A file being filled: its header, and segments with room for their tags.
pub(crate) struct Unsealed {
    bytes: Vec<u8>,
    key: PayloadKey,
    payload_start: usize,
    /// Content of the segment being filled.
    segment_filled: usize,
}

/// Begins a file to all recipients in this buffer, whose content is let go.
pub(crate) fn begin(recipients: &[Recipient], mut buffer: Vec<u8>) -> io::Result<Unsealed> {
    buffer.clear();
    let secret = RefCell::new(None);
    let watched: Vec<Watched<'_>> = recipients
        .iter()
        .map(|recipient| Watched {
            recipient: recipient.as_age(),
            secret: &secret,
        })
        .collect();
    let encryptor = age::Encryptor::with_recipients(watched.iter().map(|r| r as &dyn age::Recipient));
    // The crate writes header and nonce at once, and nothing more before it is given content.
    drop(encryptor.map_err(io::Error::other)?.wrap_output(&mut buffer)?);
    drop(watched);
    let secret = secret
        .into_inner()
        .ok_or_else(|| io::Error::other("age made no file key"))?;
    let nonce_start = buffer.len().saturating_sub(NONCE_BYTES);
    let key = PayloadKey::derive(&secret, buffer.get(nonce_start..).unwrap_or_default())?;
    Ok(Unsealed {
        key,
        payload_start: buffer.len(),
        bytes: buffer,
        segment_filled: 0,
    })
}

impl Unsealed {
    /// How large the file will be, sealed, if so much more is appended.
    pub(crate) fn sealed_bytes_with(&self, more: usize) -> usize {
        let last = self.segment_filled + more;
        self.bytes.len() + more + (last / SEGMENT_BYTES + 1) * TAG_BYTES
    }

    pub(crate) fn append(&mut self, mut content: &[u8]) {
        while !content.is_empty() {
            if self.segment_filled == SEGMENT_BYTES {
                self.bytes.extend_from_slice(&[0; TAG_BYTES]);
                self.segment_filled = 0;
            }
            let (now, rest) = content.split_at(content.len().min(SEGMENT_BYTES - self.segment_filled));
            self.bytes.extend_from_slice(now);
            self.segment_filled += now.len();
            content = rest;
        }
    }

    /// The file's bytes.
    pub(crate) fn seal(mut self) -> io::Result<Vec<u8>> {
        self.bytes.extend_from_slice(&[0; TAG_BYTES]);
        let payload = self.bytes.get_mut(self.payload_start..).unwrap_or_default();
        let count = payload.len().div_ceil(SEALED_SEGMENT_BYTES) as u64;
        for (number, segment) in (0..).zip(payload.chunks_mut(SEALED_SEGMENT_BYTES)) {
            let Some((content, tag_place)) = segment.split_last_chunk_mut::<TAG_BYTES>() else {
                return Err(io::Error::other("a segment without room for its tag"));
            };
            let nonce = segment_nonce(number, number + 1 == count);
            let tag = self.key.0.seal_in_place_separate_tag(nonce, Aad::empty(), content);
            tag_place.copy_from_slice(tag.map_err(io::Error::other)?.as_ref());
        }
        Ok(self.bytes)
    }
}

#[cfg(test)]
fn seal_whole(recipients: &[Recipient], plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut file = begin(recipients, Vec::with_capacity(plain.len() + plain.len() / 4096 + 1024))?;
    file.append(plain);
    file.seal()
}

/// A file whose header was opened.
pub(crate) struct Opened {
    key: PayloadKey,
    payload_start: u64,
    file_bytes: u64,
}

/// Opens a file by its first bytes: all of it, or [`HEADER_MAX_BYTES`].
pub(crate) fn open(first: &[u8], file_bytes: u64, identity: &Identity) -> Result<Opened, age::DecryptError> {
    let secret = RefCell::new(None);
    let taken = Cell::new(0);
    let watched: Vec<WatchedIdentity<'_>> = identity
        .as_age()
        .map(|identity| WatchedIdentity {
            identity,
            secret: &secret,
        })
        .collect();
    // Without a buffer of its own: after it, exactly header and nonce have been read.
    let decryptor = age::Decryptor::new(Counted {
        rest: first,
        taken: &taken,
    })?;
    // Checks the header's MAC too.
    drop(decryptor.decrypt(watched.iter().map(|i| i as &dyn age::Identity))?);
    drop(watched);
    let payload_start = taken.get();
    let nonce = payload_start
        .checked_sub(NONCE_BYTES)
        .and_then(|at| first.get(at..payload_start));
    match (secret.into_inner(), nonce) {
        (Some(secret), Some(nonce)) => Ok(Opened {
            key: PayloadKey::derive(&secret, nonce).map_err(age::DecryptError::Io)?,
            payload_start: payload_start as u64,
            file_bytes,
        }),
        _ => Err(age::DecryptError::InvalidHeader),
    }
}

/// Where the segments lie that hold a part of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    /// The first byte in the file.
    pub(crate) start: u64,
    /// The byte after the last.
    pub(crate) end: u64,
    first: u64,
    /// Content before the part that was asked for.
    pub(crate) lead: usize,
}

impl Opened {
    /// How much content the file has; none where its length cannot be that of an age file.
    pub(crate) fn content_bytes(&self) -> Option<u64> {
        let payload = self.file_bytes.checked_sub(self.payload_start)?;
        let count = payload.div_ceil(SEALED_SEGMENT_BYTES as u64);
        payload.checked_sub(count * TAG_BYTES as u64)
    }

    /// The segments of the content in this range.
    pub(crate) fn segments(&self, content: std::ops::Range<u64>) -> Segments {
        let first = content.start / SEGMENT_BYTES as u64;
        let after = content.end.div_ceil(SEGMENT_BYTES as u64).max(first + 1);
        let place = |segment: u64| self.payload_start + segment * SEALED_SEGMENT_BYTES as u64;
        Segments {
            start: place(first).min(self.file_bytes),
            end: place(after).min(self.file_bytes),
            first,
            lead: (content.start % SEGMENT_BYTES as u64) as usize,
        }
    }

    /// Opens segments in place and leaves their content, without the tags, at the beginning of the buffer.
    pub(crate) fn open_segments(&self, segments: Segments, sealed: &mut Vec<u8>) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a sealed segment is damaged or cut short");
        if sealed.len() as u64 != segments.end - segments.start || sealed.len() < TAG_BYTES {
            return Err(damaged());
        }
        let ends_file = segments.end == self.file_bytes;
        let count = sealed.len().div_ceil(SEALED_SEGMENT_BYTES);
        let mut content_bytes = 0;
        for number in 0..count {
            let from = number * SEALED_SEGMENT_BYTES;
            let to = sealed.len().min(from + SEALED_SEGMENT_BYTES);
            let nonce = segment_nonce(segments.first + number as u64, ends_file && number + 1 == count);
            // The content moves down over the tags before it.
            let place = sealed.get_mut(content_bytes..to).ok_or_else(damaged)?;
            let opened = self
                .key
                .0
                .open_within(nonce, Aad::empty(), place, from - content_bytes..)
                .map_err(|_| damaged())?;
            content_bytes += opened.len();
        }
        sealed.truncate(content_bytes);
        Ok(())
    }
}

/// Opens a file whole.
pub(crate) fn open_whole(sealed: &[u8], identity: &Identity) -> Result<Vec<u8>, age::DecryptError> {
    let opened = open(sealed, sealed.len() as u64, identity)?;
    let mut content = sealed.get(opened.payload_start as usize..).unwrap_or_default().to_vec();
    let all = Segments {
        start: opened.payload_start,
        end: opened.file_bytes,
        first: 0,
        lead: 0,
    };
    opened.open_segments(all, &mut content)?;
    Ok(content)
}

/// A recipient that lets us see the key it wraps.
struct Watched<'a> {
    recipient: &'a dyn age::Recipient,
    secret: &'a RefCell<Option<FileSecret>>,
}

impl age::Recipient for Watched<'_> {
    fn wrap_file_key(&self, key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        *self.secret.borrow_mut() = Some(Zeroizing::new(*key.expose_secret()));
        self.recipient.wrap_file_key(key)
    }
}

/// An identity that lets us see the key it unwraps.
struct WatchedIdentity<'a> {
    identity: &'a dyn age::Identity,
    secret: &'a RefCell<Option<FileSecret>>,
}

impl WatchedIdentity<'_> {
    fn keep(&self, found: Option<Result<FileKey, age::DecryptError>>) -> Option<Result<FileKey, age::DecryptError>> {
        if let Some(Ok(key)) = &found {
            *self.secret.borrow_mut() = Some(Zeroizing::new(*key.expose_secret()));
        }
        found
    }
}

impl age::Identity for WatchedIdentity<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        self.keep(self.identity.unwrap_stanza(stanza))
    }
    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, age::DecryptError>> {
        self.keep(self.identity.unwrap_stanzas(stanzas))
    }
}

/// Bytes that know how many of them were read.
struct Counted<'a> {
    rest: &'a [u8],
    taken: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.rest.read(out)?;
        self.taken.set(self.taken.get() + n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::keys::parse_recipient;

    fn key_pair() -> (Identity, Recipient) {
        let (text, recipient) = Identity::generate();
        (
            Identity::from_file_text(&text).unwrap(),
            parse_recipient(&recipient).unwrap(),
        )
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    const LENGTHS: [usize; 9] = [0, 1, 100, 65_535, 65_536, 65_537, 131_072, 131_073, 1_000_000];

    #[test]
    fn the_age_crate_opens_what_we_seal() {
        let (identity, recipient) = key_pair();
        let (_, other) = key_pair();
        for length in LENGTHS {
            let content = noise(length);
            let mut file = begin(&[other.clone(), recipient.clone()], vec![1; 50]).unwrap();
            for piece in content.chunks(7_001) {
                file.append(piece);
            }
            let expected_bytes = file.sealed_bytes_with(0);
            let sealed = file.seal().unwrap();
            assert!(sealed.len() <= expected_bytes && sealed.len() + TAG_BYTES >= expected_bytes);
            let mut back = Vec::new();
            let decryptor = age::Decryptor::new(&sealed[..]).unwrap();
            let mut reader = decryptor.decrypt(identity.as_age()).unwrap();
            reader.read_to_end(&mut back).unwrap();
            assert!(back == content, "{length}");
        }
    }

    #[test]
    fn we_open_what_the_age_crate_seals() {
        let (identity, recipient) = key_pair();
        for length in LENGTHS {
            let content = noise(length);
            let recipients = [recipient.as_age()];
            let encryptor = age::Encryptor::with_recipients(recipients.into_iter()).unwrap();
            let mut writer = encryptor.wrap_output(Vec::new()).unwrap();
            writer.write_all(&content).unwrap();
            let sealed = writer.finish().unwrap();
            assert!(open_whole(&sealed, &identity).unwrap() == content, "{length}");
            let opened = open(&sealed, sealed.len() as u64, &identity).unwrap();
            assert_eq!(opened.content_bytes(), Some(length as u64));
        }
    }

    #[test]
    fn any_part_opens_without_the_rest() {
        let (identity, recipient) = key_pair();
        let content = noise(300_000);
        let sealed = seal_whole(&[recipient], &content).unwrap();
        let opened = open(&sealed[..1000], sealed.len() as u64, &identity).unwrap();
        for (from, to) in [
            (0, 1),
            (0, 65_536),
            (65_530, 65_540),
            (65_536, 131_072),
            (299_999, 300_000),
            (1, 300_000),
        ] {
            let segments = opened.segments(from..to);
            let mut part = sealed[segments.start as usize..segments.end as usize].to_vec();
            opened.open_segments(segments, &mut part).unwrap();
            assert!(
                part[segments.lead..].starts_with(&content[from as usize..to as usize]),
                "{from}..{to}"
            );
        }
    }

    #[test]
    fn a_changed_moved_or_missing_segment_does_not_open() {
        let (identity, recipient) = key_pair();
        let content = noise(200_000);
        let sealed = seal_whole(&[recipient], &content).unwrap();
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(open_whole(&flipped, &identity).is_err());
        // Cut where a segment ends, it lacks the one that is marked as the last.
        let opened = open(&sealed, sealed.len() as u64, &identity).unwrap();
        let cut = opened.payload_start as usize + 2 * SEALED_SEGMENT_BYTES;
        assert!(open_whole(&sealed[..cut], &identity).is_err());
        assert!(open_whole(&sealed[..opened.payload_start as usize], &identity).is_err());
        let mut swapped = sealed.clone();
        let start = opened.payload_start as usize;
        swapped[start..start + 2 * SEALED_SEGMENT_BYTES].rotate_left(SEALED_SEGMENT_BYTES);
        assert!(open_whole(&swapped, &identity).is_err());
        let mut header = sealed;
        header[60] ^= 1;
        assert!(open_whole(&header, &identity).is_err());
    }
}
