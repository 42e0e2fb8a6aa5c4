//! Listens, and keeps its place in a file: `cargo run -p fanfare-client --example listen -- URL TOKEN [TOPIC...]`.

use fanfare_client::{Cursor, Notification, Options};
use std::{env, error::Error, fs};

const PLACE: &str = "place";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(url), Some(token)) = (arguments.next(), arguments.next()) else {
        return Err("say where the hub is and with which token: listen URL TOKEN [TOPIC...]".into());
    };
    let cursor = Cursor { last_event_id: fs::read_to_string(PLACE).ok(), ..Cursor::default() };
    let mut listener = Options::new(url, token).topics(arguments).cursor(cursor).listen()?;
    loop {
        tokio::select! {
            heard = listener.next() => match heard? {
                Notification::Event(event) => {
                    println!("{}", event.json());
                    // Done with it: after a crash it goes on here.
                    fs::write(PLACE, event.event_id())?;
                }
                Notification::Gap(gap) => eprintln!("history was lost ({}): fetch the state anew", gap.reason),
                Notification::State(state) => eprintln!("{state:?}"),
                _ => {}
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    listener.close().await;
    Ok(())
}
