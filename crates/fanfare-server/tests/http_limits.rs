//! HTTP clients that hold connections: silent, slow, or too many. Other clients are served meanwhile, and no resources
//! leak.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use testbed::{HubProcess, until};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

const PROGRAM: &str = env!("CARGO_BIN_EXE_fanfare");

fn start(arguments: &[&str]) -> HubProcess {
    HubProcess::start(Path::new(PROGRAM), arguments, &[("SECRET_KEY", SECRET)])
}

fn token(claims: Claims) -> String {
    Minter::from_secret(SECRET).unwrap().mint(&Claims { sub: "ann".to_owned(), ..claims })
}

/// Requests without their bodies, for routes that read one.
fn without_bodies() -> [String; 4] {
    let publisher = token(Claims { publish: true, ..Claims::default() });
    let json = "Host: hub\r\nContent-Type: application/json\r\n";
    [
        format!("POST /auth/login HTTP/1.1\r\n{json}Content-Length: 4000\r\n\r\n"),
        format!("POST /auth/refresh HTTP/1.1\r\n{json}Transfer-Encoding: chunked\r\n\r\n"),
        format!("POST /events HTTP/1.1\r\n{json}Authorization: Bearer {publisher}\r\nContent-Length: 4000\r\n\r\n"),
        // No route reads this body.
        format!("POST /nowhere HTTP/1.1\r\n{json}Content-Length: 4000\r\n\r\n"),
    ]
}

fn connect(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // A connection that was evicted may be reset already.
    let _ = stream.write_all(text.as_bytes());
    stream
}

/// Connects from one of many addresses of this machine.
fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Reads until the hub closes the connection.
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// A client that connects over WebSocket and reads its `ack`.
fn client(address: SocketAddr) -> TcpStream {
    let path = format!("/ws?token={}", token(Claims::default()));
    let mut stream = connect(
        address,
        &format!(
            "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    );
    let mut text = String::new();
    while !text.contains("\"ack\"") {
        let mut bytes = [0; 512];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "closed before its ack: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    stream
}

fn is_alive(hub: &HubProcess) {
    let live = hub.get("/health/live").expect("no response");
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
}

fn has_files(hub: &HubProcess) {
    is_alive(hub);
    assert!(!hub.log().contains("failed to accept connections"), "{}", hub.log());
}

/// A hub with a low limit on open files.
fn start_with_files(files: u32, arguments: &[&str]) -> HubProcess {
    let hub = HubProcess::launch_with_files(files, Path::new(PROGRAM), arguments, &[("SECRET_KEY", SECRET)]);
    hub.wait_until_ready(arguments)
}

// attack: requests whose bodies never come, declared or chunked, on every route with a body => 408 at handshake_timeout, and the connection is closed
#[test]
fn a_missing_body_times_out() {
    let hub = start(&["--handshake-timeout", "1s"]);
    let before = files(hub.id());
    for mut stream in without_bodies().map(|head| connect(hub.address(), &head)) {
        let answer = read_to_close(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 408") || answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
    until("all files are closed", || files(hub.id()) <= before);
}

// attack: heads and bodies sent byte by byte => closed soon after handshake_timeout
#[test]
fn sending_byte_by_byte_does_not_extend_the_timeout() {
    let hub = start(&["--handshake-timeout", "1s"]);
    let before = files(hub.id());
    let mut slow: Vec<_> = without_bodies().iter().map(|head| connect(hub.address(), head)).collect();
    slow.push(connect(hub.address(), "GET / HTTP/1.1\r\nX-Slow: "));
    let begun = Instant::now();
    until("the connections are closed although they continue to send", || {
        for stream in &mut slow {
            let _ = stream.write_all(b"1");
        }
        thread::sleep(Duration::from_millis(50));
        files(hub.id()) <= before
    });
    // At twenty bytes a second, a timeout for each byte would have allowed thousands of bytes, and so minutes.
    println!("closed after {:?}", begun.elapsed());
}

// attack: 320 unfinished requests from one address on a hub with 300 files => health checks and clients are served
#[test]
fn one_address_cannot_exhaust_the_files() {
    keeps_serving(|address, head, _| connect(address, head));
}

// attack: 320 unfinished requests from as many addresses on a hub with 300 files => health checks and clients are served
#[test]
fn many_addresses_cannot_exhaust_the_files() {
    keeps_serving(|address, head, n| {
        let [high, low] = u16::try_from(n + 256).unwrap().to_be_bytes();
        let mut stream = connect_from(Ipv4Addr::new(127, 1, high, low), address);
        let _ = stream.write_all(head.as_bytes());
        stream
    });
}

// attack: rejected clients from 100 addresses that never read why, on a hub with 300 files that is full => health checks are answered
#[test]
fn rejected_clients_cannot_exhaust_the_files() {
    for delay in ["0s", "30s"] {
        let hub = start_with_files(300, &["--refusal-delay", delay]);
        let mut held = Vec::new();
        for n in 0..160 {
            let mut stream = connect(hub.address(), "");
            handshake(&mut stream, &format!("/ws?token={}", token(Claims::default())));
            held.push(stream);
            if n % 40 == 39 {
                has_files(&hub);
            }
        }
        for n in 0..400 {
            let mut stream = connect_from(Ipv4Addr::new(127, 1, 1, u8::try_from(n % 100 + 1).unwrap()), hub.address());
            handshake(&mut stream, "/ws?token=none");
            held.push(stream);
            if n % 40 == 39 {
                has_files(&hub);
            }
        }
        drop(held);
    }
}

fn keeps_serving(connect: impl Fn(SocketAddr, &str, usize) -> TcpStream) {
    // No timeout applies: the connections stay open until they are evicted.
    let hub = start_with_files(300, &["--max-connections", "10", "--handshake-timeout", "10m"]);
    let mut first = client(hub.address());
    let heads = without_bodies();
    let mut held: Vec<_> = (0..320).map(|n| connect(hub.address(), &heads[n % heads.len()], n)).collect();
    for n in 0..20 {
        is_alive(&hub);
        held.push(connect(hub.address(), &heads[n % heads.len()], 320 + n));
    }
    let second = client(hub.address());
    // Upgraded clients are not evicted.
    first.set_nonblocking(true).unwrap();
    assert_eq!(first.read(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop((first, second, held));
}

// attack: clients that pipeline requests for large responses and read nothing => closed at handshake_timeout
#[test]
fn a_response_that_is_not_read_times_out() {
    let hub = start(&["--handshake-timeout", "1s"]);
    let before = files(hub.id());
    let many = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: hub\r\n\r\n".repeat(40);
    let held: Vec<_> = (0..12).map(|_| connect(hub.address(), &many)).collect();
    until("each connection was accepted and closed", || refusals(&hub, "handshake_timeout") >= held.len());
    until("all files are closed", || files(hub.id()) <= before);
}

// attack: TLS handshakes that never end => closed at handshake_timeout
#[test]
fn an_unfinished_tls_handshake_times_out() {
    let home = tempfile::tempdir().unwrap();
    testbed::Authority::new().issue(home.path(), 30);
    let file = |name: &str| home.path().join(name).display().to_string();
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let tls = ["--tls-certificate-file", &certificate, "--tls-key-file", &key, "--handshake-timeout", "1s"];
    let hub = HubProcess::launch(Path::new(PROGRAM), &tls, &[("SECRET_KEY", SECRET)]);
    until("the hub listens", || TcpStream::connect(hub.address()).is_ok());
    // No data, and the beginning of a ClientHello.
    for text in ["", "\u{16}\u{3}\u{1}\u{2}"] {
        assert_eq!(read_to_close(&mut connect(hub.address(), text)), "");
    }
}

// attack: silent, slow and non-reading connections to metrics_listen => closed at handshake_timeout; 100 at once leave room for a scrape
#[test]
fn the_metrics_listener_has_the_same_limits() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = port.to_string();
    let hub = start(&["--metrics-listen", &address, "--handshake-timeout", "2s"]);
    let heads = ["", "GET /metr", "POST /metrics HTTP/1.1\r\nHost: hub\r\nContent-Length: 50\r\n\r\n"];
    for mut stream in heads.map(|head| connect(port, head)) {
        read_to_close(&mut stream);
    }
    let held: Vec<_> = (0..100).map(|_| connect(port, "GET /metr")).collect();
    let metrics = testbed::get(port, "/metrics").expect("no response to the scrape");
    assert!(metrics.contains("fanfare_refusals_total{limit=\"max_http_connections_per_address\"}"), "{metrics}");
    drop((held, hub));
}

/// Number of rejections by a limit.
fn refusals(hub: &HubProcess, limit: &str) -> usize {
    let bearer = token(Claims { admin: true, ..Claims::default() });
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {bearer}\r\n\r\n");
    let metrics = read_to_close(&mut connect(hub.address(), &request));
    let line = format!("fanfare_refusals_total{{limit=\"{limit}\"}} ");
    metrics.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

// attack: a body over the limit of 1, 5 or 20 MB => the sender receives the 413, 401 or 404, and no reset, even if it reads only after it has sent everything
#[test]
fn a_body_over_the_limit_is_answered_without_a_reset() {
    let hub = start(&[]);
    let publisher = token(Claims { publish: true, ..Claims::default() });
    for megabytes in [1, 5, 20] {
        let body = vec![b'x'; megabytes << 20];
        for (path, bearer, status) in [
            ("/events", publisher.as_str(), "413"),
            ("/events/batch", &publisher, if megabytes > 8 { "413" } else { "400" }),
            ("/events", "nonsense", "401"),
            ("/auth/login", "", "413"),
            ("/nowhere", "", "404"),
        ] {
            for framing in ["declared", "chunked"] {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {bearer}\r\n\
                     Content-Type: application/json\r\n"
                );
                let mut stream = connect(hub.address(), &head);
                let sent = match framing {
                    "declared" => {
                        write!(stream, "Content-Length: {}\r\n\r\n", body.len()).and_then(|()| stream.write_all(&body))
                    }
                    _ => write!(stream, "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len())
                        .and_then(|()| stream.write_all(&body))
                        .and_then(|()| stream.write_all(b"\r\n0\r\n\r\n")),
                };
                sent.unwrap_or_else(|error| panic!("{path} {framing} {megabytes} MB: {error}"));
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("{path} {framing} {megabytes}: {error}"));
                let answer = String::from_utf8_lossy(&answer);
                assert_eq!(answer, format!("HTTP/1.1 {status}"), "{path} {framing} {megabytes} MB");
            }
        }
    }
}

// attack: a body that is announced with Expect: 100-continue and too large => 413 at once, without asking for it
#[test]
fn an_announced_body_that_is_too_large_is_not_requested() {
    let hub = start(&[]);
    let publisher = token(Claims { publish: true, ..Claims::default() });
    let mut stream = connect(
        hub.address(),
        &format!(
            "POST /events HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {publisher}\r\n\
             Content-Type: application/json\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
        ),
    );
    let answer = read_to_close(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

// attack: a request with two Host headers, or none => 400, and no route sees it
#[test]
fn a_request_without_exactly_one_host_is_rejected() {
    let hub = start(&[]);
    for (version, hosts, status) in [
        ("1.1", &["hub"][..], "200"),
        ("1.1", &[], "400"),
        ("1.1", &["hub", "other"], "400"),
        ("1.1", &["hub", "hub"], "400"),
        ("1.0", &[], "200"),
        ("1.0", &["hub", "other"], "400"),
    ] {
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        let request = format!("GET /health/live HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        let answer = read_to_close(&mut connect(hub.address(), &request));
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}{answer}");
    }
}

#[test]
fn hsts_is_sent_only_over_tls() {
    let home = tempfile::tempdir().unwrap();
    testbed::Authority::new().issue(home.path(), 30);
    let file = |name: &str| home.path().join(name).display().to_string();
    let (certificate, key, authority) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = ["--tls-certificate-file", &certificate, "--tls-key-file", &key];
    for (arguments, expected) in [
        ([&tls[..], &["--hsts-max-age", "365d"]].concat(), true),
        (tls.to_vec(), false),
        (vec!["--hsts-max-age", "365d"], false),
    ] {
        let hub = HubProcess::launch(Path::new(PROGRAM), &arguments, &[("SECRET_KEY", SECRET)]);
        until("the hub listens", || TcpStream::connect(hub.address()).is_ok());
        let scheme = if arguments.contains(&"--tls-key-file") { "https" } else { "http" };
        let url = format!("{scheme}://{}/health/live", hub.address());
        let output = std::process::Command::new("curl").args(["-sSi", "--cacert", &authority, &url]).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(answer.contains("strict-transport-security: max-age=31536000"), expected, "{arguments:?} {answer}");
    }
}

/// Reads until the data contains a text.
fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let mut text = String::new();
    while !text.contains(part) {
        let mut bytes = [0; 512];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "closed before {part}: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    text
}

/// Sends a WebSocket handshake.
fn handshake(stream: &mut TcpStream, path: &str) {
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // A connection may be closed already.
    let _ = stream.write_all(text.as_bytes());
}

// attack: one user takes over one connection 320 times and reads nothing, on a hub with 300 files => the replaced sockets are closed
#[test]
fn replaced_connections_cannot_exhaust_the_files() {
    let fast = ["--connects-per-second-per-user", "0", "--connects-per-second-per-address", "0"];
    let hub = start_with_files(300, &[&fast[..], &["--max-connections", "10", "--handshake-timeout", "10m"]].concat());
    let mut first = connect(hub.address(), "");
    handshake(&mut first, &format!("/ws?token={}", token(Claims::default())));
    let ack = read_until(&mut first, "\"connection_id\":\"");
    let id = ack.rsplit_once("\"connection_id\":\"").unwrap().1.to_owned() + &read_until(&mut first, "\"");
    let id = id.split('"').next().unwrap();
    let path = format!("/ws?token={}&connection_id={id}", token(Claims::default()));
    let mut held = vec![first];
    for n in 0..320 {
        let mut stream = connect(hub.address(), "");
        handshake(&mut stream, &path);
        read_until(&mut stream, "\"ack\"");
        held.push(stream);
        if n % 40 == 39 {
            has_files(&hub);
        }
    }
    drop(held);
}

// attack: 5 MB of a requested body (Expect: 100-continue, chunked), or of a request with two Host headers => 413 or 400, and no reset
#[test]
fn a_rejected_body_in_transit_is_answered_without_a_reset() {
    let hub = start(&[]);
    let publisher = token(Claims { publish: true, ..Claims::default() });
    let body = vec![b'x'; 5 << 20];
    for (host, expect, status) in [("", "Expect: 100-continue\r\n", "413"), ("Host: other\r\n", "", "400")] {
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: hub\r\n{host}Authorization: Bearer {publisher}\r\n\
             Content-Type: application/json\r\n{expect}Transfer-Encoding: chunked\r\n\r\n"
        );
        let mut stream = connect(hub.address(), &head);
        if !expect.is_empty() {
            read_until(&mut stream, "100 Continue\r\n\r\n");
        }
        let sent = write!(stream, "{:x}\r\n", body.len())
            .and_then(|()| stream.write_all(&body))
            .and_then(|()| stream.write_all(b"\r\n0\r\n\r\n"));
        sent.unwrap_or_else(|error| panic!("{status}: {error}"));
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"));
    }
}
