//! One chunk to one zstd frame and back.
//!
//! Every frame that a compressor made is decoded and compared with its input before anybody relies on it. Decoding never writes more than
//! the caller's bound, whatever the frame says.

use std::io;

use xxhash_rust::xxh64::xxh64;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

/// The level of content that shrinks, where nothing else is said, and of documents.
pub(crate) const LEVEL: i32 = 3;
/// The beginning of a frame that says how long it is, in four bytes, and ends with a checksum (RFC 8878, 3.1.1).
const STORED_FRAME: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa4];
/// The longest block that a frame may have.
const BLOCK_BYTES: usize = 128 * 1024;
const PROBE_LEVEL: i32 = 1;
const PROBE_BYTES: usize = 64 * 1024;

/// How a chunk is not as it was.
#[derive(Debug)]
pub(crate) enum EncodeError {
    Failed(io::Error),
    DoesNotDecode,
}

/// Compresses chunks; one a thread, so that zstd's tables and the buffers are made once.
pub(crate) struct Encoder {
    main: Compressor<'static>,
    probe: Compressor<'static>,
    decoder: Decompressor<'static>,
    decoded: Vec<u8>,
    sample: Vec<u8>,
    /// Whether the last chunk shrank; content that does not shrink comes in runs, and only there a probe pays.
    shrinking: bool,
    /// A faulty compressor, for the test that one is caught.
    #[cfg(test)]
    pub(crate) tamper: Option<fn(&mut Vec<u8>)>,
}

impl Encoder {
    /// Compresses what shrinks at this level.
    pub(crate) fn new(level: i32) -> io::Result<Self> {
        Ok(Self {
            main: compressor(level)?,
            probe: compressor(PROBE_LEVEL)?,
            decoder: Decompressor::new()?,
            decoded: Vec::new(),
            sample: Vec::new(),
            shrinking: true,
            #[cfg(test)]
            tamper: None,
        })
    }

    /// Compresses what comes next at this level.
    pub(crate) fn set_level(&mut self, level: i32) -> io::Result<()> {
        self.main.set_compression_level(level)
    }

    /// Puts one frame of `raw` into `frame`, in place of what it held.
    pub(crate) fn encode(&mut self, raw: &[u8], frame: &mut Vec<u8>) -> Result<(), EncodeError> {
        frame.clear();
        frame.reserve(compress_bound(raw.len()));
        if !self.shrinking && !self.probe_shrinks(raw)? {
            store(raw, frame);
            return Ok(());
        }
        self.main.compress_to_buffer(raw, frame).map_err(EncodeError::Failed)?;
        self.shrinking = shrank(raw.len(), frame.len());
        #[cfg(test)]
        if let Some(tamper) = self.tamper {
            tamper(frame);
        }
        self.decoded.clear();
        self.decoded.reserve(raw.len());
        match self.decoder.decompress_to_buffer(frame.as_slice(), &mut self.decoded) {
            Ok(_) if self.decoded == raw => Ok(()),
            _ => Err(EncodeError::DoesNotDecode),
        }
    }

    fn probe_shrinks(&mut self, raw: &[u8]) -> Result<bool, EncodeError> {
        let part = raw.get(..PROBE_BYTES).unwrap_or(raw);
        self.sample.clear();
        self.sample.reserve(compress_bound(part.len()));
        self.probe
            .compress_to_buffer(part, &mut self.sample)
            .map_err(EncodeError::Failed)?;
        Ok(shrank(part.len(), self.sample.len()))
    }
}

/// Appends a frame of content as it is.
fn store(raw: &[u8], frame: &mut Vec<u8>) {
    frame.extend_from_slice(&STORED_FRAME);
    // A chunk has a few MiB.
    frame.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    let mut left = raw;
    loop {
        let (block, rest) = left.split_at(left.len().min(BLOCK_BYTES));
        let header = (block.len() as u32) << 3 | u32::from(rest.is_empty());
        let [low, middle, high, _] = header.to_le_bytes();
        frame.extend_from_slice(&[low, middle, high]);
        frame.extend_from_slice(block);
        left = rest;
        if left.is_empty() {
            break;
        }
    }
    frame.extend_from_slice(&(xxh64(raw, 0) as u32).to_le_bytes());
}

/// By more than two per cent.
const fn shrank(before: usize, after: usize) -> bool {
    after < before - before / 50
}

fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    Ok(compressor)
}

/// Puts the content of one frame into `raw`, in place of what it held; refuses a frame of any other length.
pub(crate) fn decode(
    decoder: &mut Decompressor<'static>,
    frame: &[u8],
    raw_bytes: usize,
    raw: &mut Vec<u8>,
) -> io::Result<()> {
    raw.clear();
    raw.reserve_exact(raw_bytes);
    // The vector may have room for more; a frame that uses it is caught by the length.
    decoder.decompress_to_buffer(frame, raw)?;
    if raw.len() == raw_bytes {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the frame has another length than the index says",
        ))
    }
}

/// Compresses a small document whole.
pub(crate) fn encode_document(plain: &[u8]) -> io::Result<Vec<u8>> {
    compressor(LEVEL)?.compress(plain)
}

/// Compresses a document piece by piece.
pub(crate) fn document_encoder() -> io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// Reads a small document of at most `limit_bytes`.
pub(crate) fn decode_document(frame: &[u8], limit_bytes: u64) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::with_buffer(frame)?
        .single_frame()
        .take(limit_bytes + 1)
        .read_to_end(&mut plain)?;
    if plain.len() as u64 > limit_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than any such object",
        ));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn a_chunk_round_trips_whether_it_shrinks_or_not() {
        let mut encoder = Encoder::new(LEVEL).unwrap();
        let mut decoder = Decompressor::new().unwrap();
        let (mut frame, mut back) = (Vec::new(), Vec::new());
        for raw in [
            vec![],
            vec![1; 1_000_000],
            noise(1_000_000),
            noise(700_000),
            vec![2; 3],
            noise(5),
        ] {
            encoder.encode(&raw, &mut frame).unwrap();
            decode(&mut decoder, &frame, raw.len(), &mut back).unwrap();
            assert_eq!(back, raw);
            assert!(frame.len() <= compress_bound(raw.len()));
        }
    }

    #[test]
    fn stored_content_is_a_frame_that_checks_itself() {
        let mut decoder = Decompressor::new().unwrap();
        for bytes in [
            0,
            1,
            255,
            256,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            3 * BLOCK_BYTES,
            1_000_000,
        ] {
            let raw = noise(bytes);
            let mut frame = Vec::new();
            store(&raw, &mut frame);
            assert!(frame.len() <= compress_bound(bytes));
            assert_eq!(zstd::stream::decode_all(frame.as_slice()).unwrap(), raw);
            let mut back = Vec::new();
            decode(&mut decoder, &frame, bytes, &mut back).unwrap();
            assert_eq!(back, raw);
            for at in [0, 9, 12, frame.len() - 1] {
                let mut damaged = frame.clone();
                damaged[at] ^= 4;
                assert!(zstd::stream::decode_all(damaged.as_slice()).is_err(), "{bytes} {at}");
            }
        }
    }

    #[test]
    fn a_frame_cannot_decode_to_more_than_the_bound() {
        let frame = encode_document(&vec![0; 10_000_000]).unwrap();
        assert!(frame.len() < 2_000);
        assert!(decode_document(&frame, 1_000_000).is_err());
        let mut decoder = Decompressor::new().unwrap();
        assert!(decode(&mut decoder, &frame, 1_000, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_corrupting_compressor_is_caught() {
        let mut encoder = Encoder::new(LEVEL).unwrap();
        let shrinks = [noise(10_000), vec![0; 90_000]].concat();
        for tamper in [
            (|frame| frame.truncate(frame.len() - 5)) as fn(&mut Vec<u8>),
            |frame| frame[20] ^= 1,
            |frame| *frame = encode_document(b"something else").unwrap(),
        ] {
            encoder.tamper = Some(tamper);
            let outcome = encoder.encode(&shrinks, &mut Vec::new());
            assert!(matches!(outcome, Err(EncodeError::DoesNotDecode)));
        }
    }
}
