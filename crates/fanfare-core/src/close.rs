//! Why connections end: one table of close codes, each with what a client should do about it.

/// What a client should do after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Nothing: a new attempt would end the same way.
    Never,
    /// Come back at once, with the cursor; wait longer after each failure.
    Now,
    /// Come back after a pause of some seconds with random spread.
    Later,
    /// Get a new token first, then come back.
    WithNewToken,
}

macro_rules! close_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $reconnect:ident;)+) => {
        /// Why a connection was closed, as RFC 6455 section 7.4 numbers it; from 4000 on the numbers are fanfare's own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum CloseCode { $($(#[doc = $doc])+ $name = $code,)+ }

        impl CloseCode {
            /// Every code a hub sends, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Whether and when a client should come back.
            pub const fn reconnect(self) -> Reconnect {
                match self { $(Self::$name => Reconnect::$reconnect),+ }
            }

            /// What the code means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

close_codes! {
    /// The client asked for the close.
    Normal = 1000, Never;
    /// The hub shuts down, or the browser leaves the page.
    GoingAway = 1001, Later;
    /// The client broke the WebSocket protocol.
    Protocol = 1002, Never;
    /// The client sent a binary message; fanfare speaks JSON in text messages.
    Unsupported = 1003, Never;
    /// A text message was not valid UTF-8.
    InvalidText = 1007, Never;
    /// The token is missing or not valid; the reason says which.
    Policy = 1008, WithNewToken;
    /// A frame or message is larger than the hub accepts.
    TooBig = 1009, Never;
    /// The hub failed.
    Internal = 1011, Later;
    /// The hub is being replaced: come back when `goaway` said. Without one, come back at once.
    Restart = 1012, Now;
    /// A limit on connections is reached; the reason says which.
    TryAgainLater = 1013, Later;
    /// The hub heard nothing from the client for the heartbeat's timeout.
    HeartbeatTimeout = 4000, Now;
    /// A newer socket took this `connection_id` over.
    Replaced = 4001, Never;
    /// The client sent more messages a second than it may.
    TooManyMessages = 4002, Later;
    /// An operator or the application ended the connection.
    Disconnected = 4003, Never;
}

impl CloseCode {
    /// The reason that goes with [`CloseCode::Replaced`].
    pub const REPLACED: &str = "a newer socket took this connection over";

    /// The reason that goes with [`CloseCode::Restart`] where two nodes have a connection and it is not known which one's is newer.
    pub const UNDECIDED: &str =
        "another node has this connection too, and it is not known which one is newer: connect again";

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_allowed_on_the_wire() {
        assert!(CloseCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for code in CloseCode::ALL {
            let n = code.number();
            assert!((1000..=1014).contains(&n) && !(1004..=1006).contains(&n) || (4000..5000).contains(&n), "{n}");
            assert!(code.meaning().ends_with('.'), "{n}");
        }
    }
}
