//! A client's byte stream as its shard drives it: TCP, TLS over TCP, or one end of a pair.
//!
//! Reading and sending never block. With TLS a client that takes nothing costs one record beyond the rest of a frame.

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

/// How much is encrypted before the kernel takes it: one record (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 << 10;

/// A client's byte stream.
#[derive(Debug)]
pub(crate) enum Socket {
    /// The client itself.
    Tcp(TcpStream),
    /// The client itself, through TLS whose handshake is over.
    Tls(Box<Tls>),
    /// One end of a pair whose other end a task joins to a stranger's stream.
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

    /// Reads what is there. Fewer bytes than fit mean that there are no more for now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
            Self::Bridge(stream) => stream.read(buffer),
        }
    }

    /// Sends what the kernel takes. Returns how many bytes that were, which may be none only if there were none.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let sent = match (&mut *self, slices) {
                // The call itself, without the C library's bookkeeping for thread cancellation around it: of what a
                // single small delivery costs beyond the kernel, that is the largest part.
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

    /// Sends on what was encrypted and not taken yet. Returns whether nothing of that is left.
    pub(crate) fn flush(&mut self) -> bool {
        match self {
            Self::Tcp(_) | Self::Bridge(_) => true,
            // What is wrong with the socket shows when it is next read.
            Self::Tls(tls) => tls.flush().unwrap_or(true),
        }
    }

    /// Whether something may be there to read that the kernel does not tell of, because it was read already.
    pub(crate) fn may_hold_input(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Says that nothing more will be sent.
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
                    // What came before is handled first; the error comes again.
                    Err(_) if filled > 0 => break,
                    Err(error) => return Err(error),
                },
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Takes what the kernel has. Returns false at the stream's end.
    fn receive(&mut self) -> io::Result<bool> {
        if self.session.read_tls(&mut self.tcp)? == 0 {
            return Ok(false);
        }
        let read = self.session.process_new_packets();
        // An answer, or the alert that says what was wrong.
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

    /// Returns whether nothing encrypted is left to send.
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

    /// Tells the client that this was the end, and not somebody in between (RFC 8446 section 6.1).
    fn end(&mut self) {
        self.session.send_close_notify();
        // Whoever takes nothing any more does not hear it.
        let _ = self.flush();
    }
}

/// The next record's worth of `slices` behind its first `skip` bytes.
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
    fn records_take_all_that_there_is_in_order() {
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
