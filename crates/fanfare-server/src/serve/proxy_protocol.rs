//! The PROXY protocol: a load balancer says first whose connection it passes on.
//!
//! Takes the header and not a byte of what comes behind it, which may be TLS.

use proxy_header::{ParseConfig, ProxyHeader};
use std::{io, net::SocketAddr};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The longest header of version 1, with its line break ("The PROXY protocol", section 2.1).
const MAX_LINE: usize = 107;

/// The part of version 2 that every header has; its last two bytes say how much follows (section 2.2).
const FIXED: usize = 16;

/// The most that may follow: addresses and what the balancer adds to them.
const MAX_REST: usize = 2_048;

/// How version 2 begins, to its first byte.
const BINARY: u8 = b'\r';

const CONFIG: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// Reads the header. Returns whose connection it is; none if it is the balancer's own, as for a health check.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    let header = if first[0] == BINARY { read_binary(stream).await? } else { read_line(stream).await? };
    let (header, _) = ProxyHeader::parse(&header, CONFIG).map_err(|error| wrong(&error.to_string()))?;
    Ok(header.proxied_address().map(|address| address.source))
}

async fn read_binary(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    let rest = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    if rest > MAX_REST {
        return Err(wrong("the PROXY header is too long"));
    }
    header.resize(FIXED + rest, 0);
    stream.read_exact(&mut header[FIXED..]).await?;
    Ok(header)
}

async fn read_line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut line, mut seen) = (Vec::new(), [0; MAX_LINE]);
    while line.len() < MAX_LINE {
        let room = MAX_LINE - line.len();
        let n = stream.peek(&mut seen[..room]).await?;
        let end = seen[..n].iter().position(|&byte| byte == b'\n');
        let mine = end.map_or(n, |end| end + 1);
        if mine == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.read_exact(&mut seen[..mine]).await?;
        line.extend_from_slice(&seen[..mine]);
        if end.is_some() {
            return Ok(line);
        }
    }
    Err(wrong("it does not begin with a PROXY header"))
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::ProxiedAddress;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    /// What is read of a balancer that sends this in these pieces, and what is left behind it.
    async fn read_of(pieces: &[&[u8]]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut balancer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let sending = async {
            for piece in pieces {
                balancer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(balancer);
        };
        let (read, ()) = tokio::join!(read(&mut stream), sending);
        let mut left = vec![];
        let _ = stream.read_to_end(&mut left).await;
        (read, left)
    }

    #[tokio::test]
    async fn the_header_is_taken_and_nothing_behind_it() {
        let client: SocketAddr = "203.0.113.9:4711".parse().unwrap();
        let mut binary = vec![];
        ProxyHeader::with_address(ProxiedAddress::stream(client, "10.0.0.1:443".parse().unwrap()))
            .encode_v2(&mut binary)
            .unwrap();
        let mut own = vec![];
        ProxyHeader::with_local().encode_v2(&mut own).unwrap();
        let line = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n";
        for (header, whose) in
            [(&line[..], Some(client)), (b"PROXY UNKNOWN\r\n", None), (&binary, Some(client)), (&own, None)]
        {
            let whole = [header, b"GET / HTTP/1.1"].concat();
            let (read, left) = read_of(&[&whole]).await;
            assert_eq!((read.unwrap(), &left[..]), (whose, &b"GET / HTTP/1.1"[..]));
            let bytes: Vec<_> = whole.chunks(1).collect();
            let (read, left) = read_of(&bytes).await;
            assert_eq!((read.unwrap(), &left[..]), (whose, &b"GET / HTTP/1.1"[..]));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 70_000]].concat();
        let endless = [b'P'; 300];
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"", b"PROXY TCP4 203.0.", b"PROXY TCP4 x y 1 2\r\n", &long, &endless]
        {
            assert!(read_of(&[bytes]).await.0.is_err(), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
    }
}
