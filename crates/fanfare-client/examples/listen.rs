//! Prints events, and stores its cursor in a file.
//!
//! Usage: `cargo run -p fanfare-client --example listen -- URL TOKEN [TOPIC...]`

use fanfare_client::{Cursor, Notification, Options};
use std::{env, error::Error, fs};

const CURSOR_FILE: &str = "cursor";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(url), Some(token)) = (arguments.next(), arguments.next()) else {
        return Err("URL or TOKEN is missing; usage: listen URL TOKEN [TOPIC...]".into());
    };
    let cursor = Cursor { last_event_id: fs::read_to_string(CURSOR_FILE).ok(), ..Cursor::default() };
    let mut listener = Options::new(url, token).topics(arguments).cursor(cursor).listen()?;
    loop {
        tokio::select! {
            notification = listener.next() => match notification? {
                Notification::Event(event) => {
                    println!("{}", event.json());
                    // The event is processed. After a crash the next run resumes after it.
                    fs::write(CURSOR_FILE, event.log_position().unwrap_or(event.event_id()))?;
                }
                Notification::Gap(gap) => eprintln!("events were lost ({}): reload your data", gap.reason),
                Notification::State(state) => eprintln!("{state:?}"),
                _ => {}
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    listener.close().await;
    Ok(())
}
