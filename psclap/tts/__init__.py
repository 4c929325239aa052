"""Speech-Clip and Clip-TTS: from phonemes to mel spectrograms to sound, and the loop with the reward model."""
