//! A client's byte stream as its shard drives it: TCP, TLS over TCP, or one end of a socket pair.
//!
//! Reads and writes never block. A TLS client that does not read costs one record beyond the rest of a frame.

use mio::{
    event::Source,
    net::{TcpStream, UnixStream},
};
use rustix::net::{self, SendFlags};
use rustls::ServerConnection;
use smallvec::SmallVec;
use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
};

/// Number of bytes that are encrypted at once: one record (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 << 10;

/// A client's byte stream.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A TCP connection to the client.
    Tcp(TcpStream),
    /// A TLS connection to the client, after its handshake.
    Tls(Box<Tls>),
    /// One end of a socket pair. A task copies between the other end and a stream of unknown type.
    Bridge(UnixStream),
}

/// TLS over TCP.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) tcp: TcpStream,
    pub(crate) session: ServerConnection,
}

impl Socket {
    pub(crate) fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(tls) => &mut tls.tcp,
            Self::Bridge(stream) => stream,
        }
    }

    /// Reads available bytes. A read that does not fill the buffer means that no more bytes are available now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
            Self::Bridge(stream) => stream.read(buffer),
        }
    }

    /// Sends as many bytes as the kernel accepts, and returns their number. Returns 0 only if `slices` is empty.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let sent = match (&mut *self, slices) {
                // The system call without the C library's wrapper: its thread cancellation support is the largest part
                // of the cost of a small delivery outside the kernel.
                (Self::Tcp(stream), [only]) => Ok(net::send(stream, only, SendFlags::NOSIGNAL)?),
                (Self::Tcp(stream), many) => stream.write_vectored(many),
                (Self::Tls(tls), many) => tls.send(many),
                (Self::Bridge(stream), many) => stream.write_vectored(many),
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends encrypted bytes that the kernel has not accepted yet. Returns whether none are left.
    pub(crate) fn flush(&mut self) -> bool {
        match self {
            Self::Tcp(_) | Self::Bridge(_) => true,
            // An error of the socket is reported by the next read.
            Self::Tls(tls) => tls.flush().unwrap_or(true),
        }
    }

    /// Whether bytes may be buffered in user space, for which the poller reports no readiness.
    pub(crate) fn may_hold_input(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Shuts down the sending side.
    pub(crate) fn shut(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(tls) => {
                tls.end();
                tls.tcp.shutdown(Shutdown::Write)
            }
            Self::Bridge(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.end();
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.session.reader().read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.receive() {
                    Ok(true) => {}
                    Ok(false) => break,
                    // Bytes received before the error are processed first. The next read returns the error again.
                    Err(_) if filled > 0 => break,
                    Err(error) => return Err(error),
                },
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads from the kernel. Returns false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        if self.session.read_tls(&mut self.tcp)? == 0 {
            return Ok(false);
        }
        let read = self.session.process_new_packets();
        // Sends a handshake reply, or the alert that states the error.
        self.flush()?;
        read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut sent = 0;
        while self.flush()? {
            let record = part(slices, sent);
            if record.is_empty() {
                break;
            }
            sent += self.session.writer().write_vectored(&record)?;
        }
        let nothing = sent == 0 && slices.iter().any(|slice| !slice.is_empty());
        if nothing { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(sent) }
    }

    /// Sends pending encrypted bytes. Returns whether none are left.
    fn flush(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.tcp) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends `close_notify`, which distinguishes the end of the stream from a truncation by an attacker (RFC 8446
    /// section 6.1).
    fn end(&mut self) {
        self.session.send_close_notify();
        // Best effort: a client that no longer reads does not receive it.
        let _ = self.flush();
    }
}

/// The next record of `slices`, after its first `skip` bytes.
fn part<'a>(slices: &'a [IoSlice<'_>], mut skip: usize) -> SmallVec<[IoSlice<'a>; 64]> {
    let mut room = RECORD_BYTES;
    let mut part = SmallVec::new();
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        let bytes = &slice[skipped..slice.len().min(skipped + room)];
        room -= bytes.len();
        if !bytes.is_empty() {
            part.push(IoSlice::new(bytes));
        }
        if room == 0 {
            break;
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_cover_all_slices_in_order() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let slices: Vec<_> = [0..10, 10..10, 10..20_000, 20_000..20_001, 20_001..40_000]
            .into_iter()
            .map(|range| IoSlice::new(&bytes[range]))
            .collect();
        let (mut read, mut records) = (Vec::new(), 0);
        loop {
            let record = part(&slices, read.len());
            let length: usize = record.iter().map(|slice| slice.len()).sum();
            if length == 0 {
                break;
            }
            assert!(length <= RECORD_BYTES);
            record.iter().for_each(|slice| read.extend_from_slice(slice));
            records += 1;
        }
        assert_eq!((read == bytes, records), (true, 3));
    }
}
